//! The measuring instruments, measured: what the load client and the inventory say of servers that are right and of servers
//! that are wrong in known ways. If these do not turn red, nothing that the end-to-end suites say counts.

use kiln_tests::{Inventory, Load, Project, compiled_api, free_address, own_network, run, wait_until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

fn main() {
    if !own_network() {
        return;
    }
    let tests: [(&str, fn()); 7] = [
        ("a_right_server_has_no_failures", a_right_server_has_no_failures),
        ("every_wrong_answer_is_a_failure", every_wrong_answer_is_a_failure),
        ("it_ends_by_itself", it_ends_by_itself),
        ("the_examples_api_serves", the_examples_api_serves),
        ("the_guestbook_serves", the_guestbook_serves),
        ("equal_projects_are_equal_commits", equal_projects_are_equal_commits),
        ("the_inventory_sees_what_is_left", the_inventory_sees_what_is_left),
    ];
    for (name, test) in tests {
        println!("{name}");
        test();
    }
    println!("harness: {} passed", tests.len());
}

/// How a server answers: the n-th request of all, and whether it may go on with the connection.
type Behaviour = dyn Fn(u64, &str, &[u8]) -> (String, bool) + Send + Sync;

fn serve(behaviour: Arc<Behaviour>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let address = listener.local_addr().expect("bound").to_string();
    let count = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (behaviour, count) = (behaviour.clone(), count.clone());
            std::thread::spawn(move || connection(stream, &*behaviour, &count));
        }
    });
    address
}

fn connection(stream: TcpStream, behaviour: &Behaviour, count: &AtomicU64) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if stream.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        while stream.read_line(&mut line).unwrap_or(0) > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let (answer, go_on) = behaviour(count.fetch_add(1, Ordering::Relaxed), &first, &body);
        if stream.get_mut().write_all(answer.as_bytes()).is_err() || !go_on {
            return;
        }
    }
}

fn body_for(line: &str, body: &[u8]) -> String {
    match line.split(' ').nth(1).unwrap_or_default() {
        "/" => "<p>release-1</p>\n".into(),
        "/api/version" => "release-1\n".into(),
        _ => {
            let (mut a, mut b) = (1u32, 0u32);
            for byte in body {
                a = (a + u32::from(*byte)) % 65521;
                b = (b + a) % 65521;
            }
            format!("release-1 length={} checksum={}\n", body.len(), b << 16 | a)
        }
    }
}

fn ok(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

/// Runs the load client until it has made some requests; its last counts.
fn measure(address: &str, more: &[&str]) -> serde_json::Value {
    let page = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(page.path(), "<p>release-0</p>\n").expect("temporary file");
    let page = page.path().display().to_string();
    let mut load = Load::start(address, &[&["--rate", "2000", "--expect-page", &page], more].concat());
    wait_until("there were 300 requests", LIMIT, || load.snapshot()["requests"].as_u64() >= Some(300));
    load.stop()
}

fn a_right_server_has_no_failures() {
    let plain = serve(Arc::new(|_, line, body| (ok(&body_for(line, body)), true)));
    let chunked = serve(Arc::new(|_, line, body| {
        let text = body_for(line, body);
        let (a, b) = text.split_at(3);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        (format!("{head}3\r\n{a}\r\n{:x}\r\n{b}\r\n0\r\n\r\n", b.len()), true)
    }));
    // Every tenth connection is closed, and says so.
    let closing = serve(Arc::new(|n, line, body| {
        let text = ok(&body_for(line, body));
        let close = n % 10 == 0;
        (if close { text.replacen("\r\n", "\r\nConnection: close\r\n", 1) } else { text }, !close)
    }));
    for address in [plain, chunked, closing] {
        let counts = measure(&address, &[]);
        assert_eq!(counts["failed"], 0, "{counts}");
        let release = &counts["releases"]["release-1"];
        assert_eq!(release["count"], counts["requests"], "{counts}");
        assert!(release["last_begun_ms"].as_u64() <= release["last_ms"].as_u64(), "{counts}");
    }
}

/// What is done to a right answer, and whether the connection goes on.
type Change = fn(String) -> (String, bool);

fn every_wrong_answer_is_a_failure() {
    // One request in fifty goes wrong, in each of these ways; what kind the client must call it.
    let wrong: [(&str, &str, Change); 9] = [
        ("closed without a word", "read", |_| (String::new(), false)),
        ("closed within the body", "read", |a| (a[..a.len() - 2].to_owned(), false)),
        ("closed within the headers", "read", |_| ("HTTP/1.1 200 OK\r\nContent-".into(), false)),
        ("status 503", "status", |a| (a.replace("200 OK", "503 Busy"), true)),
        ("another page", "body", |a| (a.replace("<p>", "<b>").replace("release-1\n", "release-1!"), true)),
        ("a wrong checksum", "body", |a| (a.replace("checksum=", "checksum=0"), true)),
        ("no marker", "body", |a| (a.replace("release-", "RELEASE-"), true)),
        ("bytes behind the answer", "body", |a| (a + "x", true)),
        ("no length", "read", |a| (a.replace("Content-Length", "X-Length"), false)),
    ];
    for (what, kind, change) in wrong {
        let address = serve(Arc::new(move |n, line, body| {
            let right = ok(&body_for(line, body));
            if n % 50 == 49 { change(right) } else { (right, true) }
        }));
        let counts = measure(&address, &[]);
        // Changes that keep an answer of one kind as it is hit the other kinds.
        let failed = counts["failed"].as_u64().unwrap_or(0);
        assert!(failed > 0 && failed < 100, "{what}: {counts}");
        let kinds: Vec<_> = counts["failures"].as_array().expect("an array").iter().collect();
        assert!(kinds.iter().any(|failure| failure["kind"] == kind), "{what}: {counts}");
    }
    let counts = measure(&free_address(), &[]);
    assert_eq!(counts["failed"], counts["requests"], "refused connections count: {counts}");
    assert_eq!(counts["failures"][0]["kind"], "connect");
}

fn it_ends_by_itself() {
    let address = serve(Arc::new(|_, line, body| (ok(&body_for(line, body)), true)));
    // Standard input stays open: only the time ends it.
    let mut load = Load::start(&address, &["--seconds", "1"]);
    let counts = load.wait();
    assert!(counts["at_ms"].as_u64() >= Some(1000), "{counts}");
    assert_eq!(counts["failed"], 0, "{counts}");
}

struct Program(Child);

impl Program {
    fn start(command: &mut Command, address: &str) -> Self {
        let child = command.stdout(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let program = Self(child);
        wait_until("the example answers", LIMIT, || TcpStream::connect(address).is_ok());
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program in a folder that looks like its image; that it serves from the image itself is the end-to-end suites'.
fn the_examples_api_serves() {
    run(Command::new(compiled_api()).arg("--self-test")).expect(0);
    let image = tempfile::tempdir().expect("temporary folder");
    for folder in ["bin", "srv"] {
        std::fs::create_dir(image.path().join(folder)).expect("temporary folder");
    }
    std::fs::copy(compiled_api(), image.path().join("bin/api")).expect("temporary folder");
    std::fs::write(image.path().join("srv/version"), "release-3\n").expect("temporary folder");
    let address = free_address();
    let port = address.rsplit(':').next().expect("a port");
    let mut command = Command::new("chroot");
    let _api = Program::start(command.arg(image.path()).arg("/bin/api").env("PORT", port), &address);
    let mut load = Load::start(&address, &["--page", "/api/version"]);
    wait_until("there were 600 requests", LIMIT, || load.snapshot()["requests"].as_u64() >= Some(600));
    let counts = load.stop();
    assert_eq!(counts["failed"], 0, "{counts}");
    assert_eq!(counts["releases"]["release-3"]["count"], counts["requests"], "{counts}");
}

fn the_guestbook_serves() {
    let project = Project::from_example("guestbook");
    project.release(7);
    let address = free_address();
    let port = address.rsplit(':').next().expect("a port");
    let mut command = Command::new("python3");
    command.arg("-B").arg(project.path("app/main.py")).env("PORT", port);
    let _guestbook = Program::start(&mut command, &address);
    let page = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(page.path(), "guestbook release-1\n").expect("temporary file");
    let page = page.path().display().to_string();
    let arguments = ["--expect-page", &page, "--version-text", "guestbook MARKER\\n"];
    let mut load = Load::start(&address, &arguments);
    wait_until("there were 600 requests", LIMIT, || load.snapshot()["requests"].as_u64() >= Some(600));
    let counts = load.stop();
    assert_eq!(counts["failed"], 0, "{counts}");
    assert_eq!(counts["releases"]["release-7"]["count"], counts["requests"], "{counts}");
}

fn equal_projects_are_equal_commits() {
    let [a, b] = [(), ()].map(|()| Project::from_example("shop"));
    assert_eq!(a.git(&["rev-parse", "HEAD"]), b.git(&["rev-parse", "HEAD"]));
    a.release(2);
    let second = a.commit("second");
    let changed = a.git(&["diff", "--name-only", "HEAD~1", &second]);
    assert_eq!(changed, "api/version.txt\nsite/index.html", "one file of each image");
}

fn the_inventory_sees_what_is_left() {
    use sha2::Digest as _;
    let state = tempfile::tempdir().expect("temporary folder");
    let path = state.path().canonicalize().expect("it exists");
    assert!(Inventory::take(&path).is_empty());
    let hash = sha2::Sha256::digest(path.to_string_lossy().as_bytes());
    let mark: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let bridge = format!("kb{mark}");
    run(Command::new("ip").args(["link", "add", &bridge, "type", "bridge"])).expect(0);
    std::fs::create_dir_all(path.join("instances/web-1")).expect("folder");
    let mut sleeper = Command::new("tail");
    sleeper.arg("-f").arg(path.join("none")).arg("/dev/null");
    let mut sleeper = sleeper.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tail starts");
    wait_until("the process shows", LIMIT, || !Inventory::take(&path).processes.is_empty());
    let left = Inventory::take(&path);
    sleeper.kill().expect("it runs");
    sleeper.wait().expect("it ends");
    run(Command::new("ip").args(["link", "delete", &bridge])).expect(0);
    assert_eq!((left.processes.len(), left.links, left.instances.len()), (1, vec![bridge], 1));
}
