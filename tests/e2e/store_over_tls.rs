//! `kiln serve` with its state in a PostgreSQL that takes TLS only: it serves with the right authority, and says in one line what is
//! wrong with any other.

use crate::tiny;
use kiln_tests::postgres::Postgres;
use kiln_tests::{Kiln, free_address, run as run_program, wait_until};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

pub fn run() {
    let mut postgres = Postgres::started(true);
    let authority = postgres.speak_tls("db.test");
    let address = |host: &str, options: &str| {
        format!("postgres://postgres@{host}:{}/kiln?hostaddr=127.0.0.1{options}", postgres.port())
    };
    let trusted = format!("&sslrootcert={}", authority.display());
    let mut kiln = Kiln::new(&free_address());
    for (host, options, words) in [
        ("db.test", "", "UnknownIssuer"),
        ("other.test", trusted.as_str(), "not valid for name"),
        ("db.test", "&sslrootcert=/nonexistent.pem", "/nonexistent.pem"),
        ("db.test", "&sslmode=disable", "no pg_hba.conf entry"),
        ("db.test", "&sslmode=on", "`on` is not an `sslmode`"),
    ] {
        // It waits for the database to come, and says what it waits for.
        let log = postgres.dir.path().join("serve.log");
        let mut command = kiln.serve_command();
        command.env("KILN_STORE", address(host, options)).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&log).expect("log"));
        let mut server = command.spawn().expect("kiln serve starts");
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let line = || said().lines().find(|line| line.contains(words)).map(str::to_owned);
        wait_until(&format!("it says {words:?}"), LIMIT, || {
            line().is_some() || server.try_wait().expect("its child").is_some_and(|_| line().is_none())
        });
        println!("{}", line().unwrap_or_else(|| panic!("{host} {options}: {}", said())));
        run_program(Command::new("kill").args(["-TERM", &server.id().to_string()]));
        server.wait().expect("it ends");
    }
    let store = address("db.test", &trusted);
    kiln.start(&[("KILN_STORE", &store)]);
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    let encrypted = "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'kiln'";
    let found = postgres.query(encrypted);
    assert!(found.ends_with("|t") && !found.starts_with('0'), "{found}");
    let load = tiny::load(&kiln, 100);
    tiny::deploy(&kiln, &project, 2).expect(0);
    tiny::all_answered(&load.stop());
    kiln.down();
}
