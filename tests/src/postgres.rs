//! A PostgreSQL server of Debian's packages, and a PgBouncer before it, for one test: as an unprivileged user, on a Unix socket
//! in a folder of the test's own, gone with the value. Nothing of the host's own clusters is touched.

use crate::{run, wait_until};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Where Debian's packages of PostgreSQL 15 put what is not for users.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// Who runs it; the package makes this user. PostgreSQL refuses to run as root.
const USER: &str = "postgres";
const LIMIT: Duration = Duration::from_secs(60);

/// A server, running or not.
pub struct Postgres {
    /// Sockets, data, logs.
    pub dir: TempDir,
    server: Option<Child>,
    pooler: Option<Child>,
    durable: bool,
    /// The port of loopback on which it speaks TLS, and nothing else.
    port: Option<u16>,
}

/// A command as the unprivileged user, ended with the thread that started it.
fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "--pdeathsig", "KILL", "--"]);
    command.arg(program).current_dir("/").stdin(Stdio::null());
    command
}

impl Postgres {
    /// Makes a cluster and starts it. One that is not `durable` does not wait for the disk, for tests that never lose power.
    pub fn started(durable: bool) -> Self {
        let initdb = Path::new(PROGRAMS).join("initdb");
        assert!(initdb.exists(), "there is no {}; hint: .ci/install", initdb.display());
        let dir = tempfile::tempdir().expect("temporary folder");
        run(Command::new("chown").arg(format!("{USER}:")).arg(dir.path())).expect(0);
        let mut command = unprivileged(&initdb);
        command.arg("--pgdata").arg(dir.path().join("data"));
        run(command.args(["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"])).expect(0);
        let mut postgres = Self { dir, server: None, pooler: None, durable, port: None };
        postgres.start();
        run(&mut postgres.psql("postgres", "CREATE DATABASE kiln")).expect(0);
        postgres
    }

    /// Has it listen on a port of loopback as well, where it takes TLS only, with a certificate for `name` of an authority whose
    /// own is answered.
    pub fn speak_tls(&mut self, name: &str) -> PathBuf {
        let dir = self.dir.path().to_owned();
        let file = |name: &str| dir.join(name).display().to_string();
        let openssl = |arguments: &[&str]| run(Command::new("openssl").args(arguments)).expect(0);
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"];
        let (authority, authority_key) = (file("authority.pem"), file("authority.key"));
        let own = [
            "req",
            "-x509",
            "-days",
            "30",
            "-subj",
            "/CN=authority",
            "-out",
            &authority,
            "-keyout",
            &authority_key,
        ];
        openssl(&[&own[..], &key[..]].concat());
        let (request, private) = (file("server.csr"), file("server.key"));
        openssl(&[&["req", "-subj", "/CN=server", "-out", &request, "-keyout", &private], &key[..]].concat());
        std::fs::write(file("names"), format!("subjectAltName=DNS:{name}")).expect("names");
        let (names, certificate) = (file("names"), file("server.pem"));
        let signed =
            ["x509", "-req", "-days", "30", "-in", &request, "-CA", &authority, "-CAkey", &authority_key];
        openssl(&[&signed[..], &["-CAcreateserial", "-extfile", &names, "-out", &certificate]].concat());
        run(Command::new("chown").arg(format!("{USER}:")).args([&private, &certificate])).expect(0);
        let rules = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
        std::fs::write(dir.join("data/pg_hba.conf"), rules).expect("pg_hba.conf");
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        self.port = Some(free.expect("a free port").port());
        self.kill();
        self.start();
        authority.into()
    }

    /// The port of [`Postgres::speak_tls`].
    pub fn port(&self) -> u16 {
        self.port.expect("it speaks TLS")
    }

    /// Starts the server and waits until it answers.
    pub fn start(&mut self) {
        let mut command = unprivileged(&Path::new(PROGRAMS).join("postgres"));
        command.arg("-D").arg(self.dir.path().join("data")).arg("-k").arg(self.dir.path());
        command.args(["-c", "max_connections=40"]);
        match self.port {
            None => {
                command.args(["-c", "listen_addresses="]);
            }
            Some(port) => {
                let file = |name: &str| self.dir.path().join(name).display().to_string();
                command.args([
                    "-c",
                    "listen_addresses=127.0.0.1",
                    "-c",
                    "ssl=on",
                    "-c",
                    &format!("port={port}"),
                ]);
                command.args(["-c", &format!("ssl_cert_file={}", file("server.pem"))]);
                command.args(["-c", &format!("ssl_key_file={}", file("server.key"))]);
            }
        }
        if !self.durable {
            command.args(["-c", "fsync=off"]);
        }
        let log = File::create(self.dir.path().join("postgres.log"));
        command.stdout(Stdio::null()).stderr(log.expect("log"));
        self.server = Some(command.spawn().expect("postgres starts"));
        wait_until("postgres answers", LIMIT, || run(&mut self.psql("postgres", "SELECT 1")).code == 0);
    }

    /// Ends the server at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.as_mut() {
            // SIGQUIT: its children end with it, and it recovers from its log when it starts.
            run(Command::new("kill").args(["-QUIT", &server.id().to_string()])).expect(0);
            let _ = server.wait();
        }
        self.server = None;
    }

    /// Where the database is.
    pub fn address(&self) -> String {
        format!("postgres:///kiln?host={}&user={USER}", self.dir.path().display())
    }

    /// Puts a pooler before the server, which gives each transaction any of its few connections; answers with its address.
    pub fn pooled(&mut self) -> String {
        let dir = self.dir.path().display().to_string();
        let file = self.dir.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\nkiln = user={USER} host={dir} dbname=kiln\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n\
             unix_socket_dir = {dir}\nauth_type = any\nauth_file =\npool_mode = transaction\ndefault_pool_size = 2\n\
             server_round_robin = 1\nlogfile = {dir}/pgbouncer.log\npidfile =\n"
        );
        std::fs::write(&file, text).expect("pgbouncer.ini");
        let mut command = unprivileged(Path::new("/usr/sbin/pgbouncer"));
        command.arg("-q").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        self.pooler = Some(command.spawn().expect("pgbouncer starts"));
        let socket = self.dir.path().join(".s.PGSQL.6432");
        wait_until("pgbouncer listens", LIMIT, || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        format!("postgres://{USER}@/kiln?host={dir}&port=6432")
    }

    /// A statement as the owner of everything.
    pub fn psql(&self, database: &str, statement: &str) -> Command {
        let mut command = unprivileged(&PathBuf::from(PROGRAMS).join("psql"));
        command.args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statement]);
        command.arg("-h").arg(self.dir.path());
        if let Some(port) = self.port {
            command.args(["-p", &port.to_string()]);
        }
        command
    }

    /// A session in kiln's database that does what is written to it, and stays.
    pub fn session(&self, script: &str) -> Child {
        let mut command = unprivileged(&PathBuf::from(PROGRAMS).join("psql"));
        command.args(["-X", "-q", "-d", "kiln", "-h"]).arg(self.dir.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("psql starts");
        writeln!(child.stdin.as_mut().expect("piped"), "{script}").expect("psql lives");
        child
    }

    /// Does it in kiln's database and answers what it said.
    pub fn query(&self, statement: &str) -> String {
        run(&mut self.psql("kiln", statement)).expect(0).stdout.trim().to_owned()
    }

    /// Empties kiln's database.
    pub fn clear(&self) {
        self.query("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("postgres.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("--- postgres said last:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        self.kill();
        if let Some(mut pooler) = self.pooler.take() {
            let _ = pooler.kill();
            let _ = pooler.wait();
        }
    }
}
