//! Cases by name, for suites whose cases are functions of one argument.

/// Runs those of the cases, each a function of one argument, whose names contain `wanted`, and says how long each took.
macro_rules! cases {
    ($wanted:expr, $subject:expr; $($case:ident)*) => {$(
        if stringify!($case).contains($wanted) {
            let begun = std::time::Instant::now();
            $case($subject).await;
            println!("{}: {} ms", stringify!($case), begun.elapsed().as_millis());
        }
    )*};
}
