//! Brings locked packages from the mirror into the content store: several at a time, each on a connection that is kept
//! open. Every package is stored as soon as it is verified, so that a bake that breaks goes on where it was.

use super::mirror::{Mirror, MirrorError};
use crate::objects::{ObjectError, Objects};
use kiln_spec::lock::LockedPackage;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Packages that are fetched at the same time; as many connections are kept open.
pub(super) const FETCHERS: usize = 4;
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// A package could not be brought into the store.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The mirror.
    #[error("cannot read it from the mirror")]
    Mirror(#[source] Box<MirrorError>),
    /// The content store.
    #[error("cannot store it")]
    Objects(#[from] ObjectError),
}

impl FetchError {
    /// What the mirror said, if it was the mirror.
    pub fn mirror(&self) -> Option<&MirrorError> {
        match self {
            Self::Mirror(error) => Some(error),
            Self::Objects(_) => None,
        }
    }
}

/// Fetches `packages`. The first that fails is named, and those that came before it are kept.
///
/// # Errors
/// The package at fault and why.
pub fn fetch<'a>(
    mirror: &Mirror,
    objects: &Objects,
    packages: &[&'a LockedPackage],
    progress: &mut dyn FnMut(String),
) -> Result<(), (&'a LockedPackage, FetchError)> {
    let one = |package: &LockedPackage| -> Result<(), FetchError> {
        let bytes = mirror.read_package(package).map_err(|error| FetchError::Mirror(error.into()))?;
        let found = objects.put(&bytes)?;
        match found == package.sha256 {
            true => Ok(()),
            false => Err(ObjectError::Mismatch { expected: package.sha256, found }.into()),
        }
    };
    let bytes: u64 = packages.iter().map(|package| package.size).sum();
    let text = |n: usize, done: u64| {
        format!(
            "fetched {n} of {} packages, {} of {} MB",
            packages.len(),
            done / 1_000_000,
            bytes / 1_000_000
        )
    };
    progress(text(0, 0));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..FETCHERS.min(packages.len()) {
            let (sender, next, one) = (sender.clone(), &next, &one);
            scope.spawn(move || {
                while let Some(package) = packages.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = one(package);
                    // Once one has failed, the others only end what they have begun.
                    if result.is_err() {
                        next.store(packages.len(), Ordering::Relaxed);
                    }
                    if sender.send((*package, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut n_done, mut bytes_done, mut failed, mut told) = (0, 0, None, Instant::now());
        for (package, result) in results {
            match result {
                Ok(()) => {
                    n_done += 1;
                    bytes_done += package.size;
                }
                Err(error) => failed = failed.or(Some((package, error))),
            }
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                progress(text(n_done, bytes_done));
            }
        }
        failed.map_or(Ok(()), Err)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::Digest;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    /// What a server was asked for, and on how many connections.
    #[derive(Default)]
    struct Seen {
        paths: Vec<String>,
        n_connections: usize,
    }

    /// A web server that has `/pool/N.deb` with the content `package N`, but for those in `missing`.
    fn server(missing: &'static [usize]) -> (String, Arc<Mutex<Seen>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/debian", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.lock().unwrap().n_connections += 1;
                let shared = shared.clone();
                std::thread::spawn(move || answer(stream, &shared, missing));
            }
        });
        (address, seen)
    }

    fn answer(mut stream: TcpStream, seen: &Mutex<Seen>, missing: &[usize]) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {}
            line.clear();
            let number = path.trim_start_matches("/debian/pool/").trim_end_matches(".deb").parse().unwrap();
            seen.lock().unwrap().paths.push(path);
            let (status, body) = match missing.contains(&number) {
                true => ("404 Not Found", String::new()),
                false => ("200 OK", format!("package {number}")),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            if stream.write_all((head + &body).as_bytes()).is_err() {
                return;
            }
        }
    }

    fn package(number: usize) -> LockedPackage {
        let content = format!("package {number}");
        LockedPackage {
            name: format!("p{number}"),
            version: "1".into(),
            architecture: "all".into(),
            sha256: Digest::of(content.as_bytes()),
            size: content.len() as u64,
            path: format!("pool/{number}.deb"),
            suite: "bookworm".into(),
            used_by: ["web".to_owned()].into(),
        }
    }

    #[test]
    fn few_connections_fetch_many_packages_and_a_broken_fetch_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let packages: Vec<LockedPackage> = (0..60).map(package).collect();
        let all: Vec<&LockedPackage> = packages.iter().collect();
        let (address, seen) = server(&[50]);
        let mut told = vec![];
        let broken = fetch(&Mirror::parse(&address).unwrap(), &objects, &all, &mut |text| told.push(text));
        let (at_fault, error) = broken.unwrap_err();
        assert_eq!(at_fault.name, "p50");
        assert!(matches!(error.mirror(), Some(MirrorError::NotFound { .. })), "{error:?}");
        assert_eq!(told[0], "fetched 0 of 60 packages, 0 of 0 MB");
        assert!(seen.lock().unwrap().n_connections <= FETCHERS, "{}", seen.lock().unwrap().n_connections);
        // What came before is kept, and only the rest is asked for.
        let missing: Vec<_> = all.iter().filter(|p| !objects.has(p.sha256)).copied().collect();
        assert!((1..=10).contains(&missing.len()), "{}", missing.len());
        let (address, seen) = server(&[]);
        fetch(&Mirror::parse(&address).unwrap(), &objects, &missing, &mut |_| ()).unwrap();
        assert_eq!(seen.lock().unwrap().paths.len(), missing.len());
        assert!(all.iter().all(|package| objects.has(package.sha256)));
    }

    #[test]
    fn another_content_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let (address, _) = server(&[]);
        let other = LockedPackage { sha256: Digest::of(b"other"), ..package(1) };
        let refused = fetch(&Mirror::parse(&address).unwrap(), &objects, &[&other], &mut |_| ());
        let (_, error) = refused.unwrap_err();
        assert!(matches!(error.mirror(), Some(MirrorError::Mismatch { .. })), "{error:?}");
    }
}
