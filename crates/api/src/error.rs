//! The one table of errors: code, HTTP status, exit code, whether a retry can help, and whose fault it is.
//!
//! A code is the stable name of a kind of error. Everything else about it is looked up here by all sides: the server takes
//! the status, the command line the exit code and the reference page all of it.

use serde::{Deserialize, Serialize};

/// How the process ends. The numbers are a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It is done.
    Done,
    /// The request failed; a rollout that was taken back is this.
    Failed,
    /// kiln itself failed.
    Fault,
    /// The command line is wrong.
    Usage,
    /// The connection was lost; what was asked for goes on.
    Lost,
    /// Interrupted; what was asked for goes on.
    Interrupted,
}

impl Exit {
    /// The number that the process ends with.
    pub const fn number(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Fault => 2,
            Exit::Usage => 64,
            Exit::Lost => 75,
            Exit::Interrupted => 130,
        }
    }
}

/// Who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Whoever typed the command or wrote the project.
    User,
    /// Whoever runs the host: space, rights, network.
    Host,
    /// kiln: please report it.
    Kiln,
}

impl Fault {
    /// The word used in output.
    pub const fn word(self) -> &'static str {
        match self {
            Fault::User => "user",
            Fault::Host => "host",
            Fault::Kiln => "kiln",
        }
    }
}

/// What the table says of one code.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Which.
    pub code: Code,
    /// Its stable name on the wire.
    pub name: &'static str,
    /// HTTP status of the answer; 0 if it never goes over the wire.
    pub status: u16,
    /// How the command line ends.
    pub exit: Exit,
    /// Whether the same request can work later without anybody changing anything.
    pub retryable: bool,
    /// Whose fault it is.
    pub fault: Fault,
    /// What it means, in one line.
    pub meaning: &'static str,
    /// What helps, in one line.
    pub help: &'static str,
}

macro_rules! table {
    ($($code:ident $name:literal $status:literal $exit:ident $retry:literal $fault:ident $meaning:literal $help:literal;)*) => {
        /// The stable name of a kind of error.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $(#[doc = $meaning] #[serde(rename = $name)] $code,)*
        }

        /// Every code, in the order of the reference page.
        pub const TABLE: &[Entry] = &[
            $(Entry {
                code: Code::$code,
                name: $name,
                status: $status,
                exit: Exit::$exit,
                retryable: $retry,
                fault: Fault::$fault,
                meaning: $meaning,
                help: $help,
            },)*
        ];
    };
}

table! {
    Usage "usage" 400 Usage false User "the command line or the request is not understood" "`kiln COMMAND --help` shows what is possible";
    NoProject "no_project" 0 Usage false User "there is no kiln.toml here, and the command needs a project" "go to the project, or name it with `-C DIR` or `--project NAME`";
    DirtyTree "dirty_tree" 0 Failed false User "the work tree differs from the commit that would be deployed" "commit the named files, or name a commit with `--ref`";
    Git "git" 0 Failed false User "git could not answer" "check that this is a git repository with at least one commit, and that the revision exists";
    File "file" 0 Failed false User "a local file could not be read or written" "check the path and its rights";
    InvalidProject "invalid_project" 422 Failed false User "kiln.toml or kiln.lock of the commit is not valid" "the message names file, line and column; mend it and commit";
    SourceRefused "source_refused" 422 Failed false User "the uploaded source was refused" "it must be one complete, undamaged commit without submodules";
    NoSource "no_source" 404 Failed true User "the server does not have the source of that commit" "deploy again: the client uploads what is missing";
    LockFailed "lock_failed" 422 Failed false User "packages could not be resolved" "check the package names, the base and `kiln serve --mirror`";
    Mirror "mirror" 502 Failed true Host "the package mirror did not answer" "check the network, or name another one with `kiln serve --mirror`";
    Registry "registry" 502 Failed true Host "the registry did not take the image" "the message names the registry and what it said";
    BakeFailed "bake_failed" 422 Failed false User "an image could not be baked" "the message names the image and the step";
    NoEnvironment "no_environment" 404 Failed false User "there is no such environment" "`kiln status` shows what exists; `kiln deploy` makes one";
    NoRelease "no_release" 404 Failed false User "the environment has no such release" "`kiln release list` shows the releases";
    NotBaked "not_baked" 409 Failed false User "the release was never baked, so there is nothing to run" "`kiln release list` shows which releases can run";
    NothingBefore "nothing_before" 409 Failed false User "no earlier release served" "name a release with `--to N`";
    NoService "no_service" 404 Failed false User "the release has no such service" "`kiln status` shows the services";
    TooMany "too_many" 422 Failed false User "more than kiln allows" "the message names the limit";
    RouteTaken "route_taken" 409 Failed false User "another environment has that host and path" "give one of them another `host` or `path`, or `kiln destroy` the other";
    NoRollout "no_rollout" 404 Failed false User "no rollout is under way" "`kiln status` shows the rollouts";
    AlreadySwitched "already_switched" 409 Failed false User "traffic is on the new release already" "`kiln rollback` brings the previous release back";
    EnvironmentExists "environment_exists" 409 Failed false User "there is such an environment already" "`kiln environment list` shows them";
    NothingServes "nothing_serves" 409 Failed false User "no release of the environment serves, so there is nothing to promote" "deploy there first, or name a release with `--release N`";
    NeverServed "never_served" 409 Failed false User "the release never served, so nobody has seen that it works" "`kiln release list` shows which releases served";
    RequirementNotMet "requirement_not_met" 409 Failed true User "the images have not shown in another environment what this one requires" "the message says what is missing; `--override REASON` goes on and is recorded";
    SecretNotSet "secret_not_set" 409 Failed false User "a service needs a secret that is not set" "`kiln secret set NAME --env ENV` reads its value from the terminal or stdin";
    NoSecret "no_secret" 404 Failed false User "there is no such secret" "`kiln secret list` shows those that are set";
    SecretUnreadable "secret_unreadable" 409 Failed false Host "a secret cannot be sealed or opened" "put the key `STATE/keys/secrets.age` back from a backup, or set the secret again and deploy";
    NotPaused "not_paused" 409 Failed false User "nothing is paused there" "`kiln status` shows what is paused";
    OnHold "on_hold" 409 Failed false Host "what the store has of the environment cannot be read" "restore the state from a backup; until then what runs of it is left alone";
    Recovering "recovering" 409 Failed false Host "the state is older than what runs, as after a restore: nothing begins" "`kiln recover --plan` shows what it would adopt and remove, `kiln recover` does it";
    NotRecovering "not_recovering" 409 Failed false User "there is no recovery hold to end" "`kiln status` shows what there is";
    BackupRefused "backup_refused" 0 Failed false User "the file is not a backup that can be restored" "use another backup; nothing was changed";
    NewerState "newer_state" 0 Failed false User "the state folder has newer state than the backup" "`kiln restore FILE --replace` puts the backup in its place and keeps the newer state beside it";
    KeyReused "key_reused" 409 Failed false User "the idempotency key was used for another request" "make up a new key for each command";
    NoInstance "no_instance" 404 Failed false User "there is no such instance, alive or gone" "`kiln instance list` shows them";
    NoImage "no_image" 404 Failed false User "there is no such image" "`kiln image list` shows them";
    ImageBroken "image_broken" 409 Failed false User "something of an image is damaged or missing" "`kiln image verify --mend` bakes it again from its commit; so does the start of an instance";
    ImageRefused "image_refused" 403 Failed false User "nobody who is trusted vouches for the image" "`kiln key list` shows whose images may run here";
    Keys "keys" 409 Failed false User "the keys of images cannot be used or changed" "`kiln key list` shows them";
    NotRebuildable "not_rebuildable" 409 Failed false User "the image cannot be baked again here" "only an image that was baked here, with its commit and its lock still there, can be";
    NotReproducible "not_reproducible" 0 Failed false User "an image was baked again from the same inputs and is another one" "the first file that differs is named: look at what makes it; if that is kiln, please report it";
    ImportRefused "import_refused" 422 Failed false User "the archive was refused" "it must be one image for linux/amd64: an OCI archive, an OCI layout or a Docker archive";
    LayerRefused "layer_refused" 422 Failed true User "a layer from another server was refused" "send the image again; what arrived whole is not sent twice";
    NotBootable "not_bootable" 422 Failed false User "the image cannot become a machine that boots" "the message names what it lacks";
    TooLarge "too_large" 413 Failed false User "the request is larger than kiln accepts" "the message names the limit";
    TakenBack "taken_back" 0 Failed false User "the rollout failed and was taken back; what served before was not touched" "`kiln why` names the cause";
    FailedNoPrevious "failed_no_previous" 0 Failed false User "the rollout failed and nothing served before" "`kiln why` names the cause";
    Superseded "superseded" 0 Failed false User "a newer deploy took the place of this rollout" "`kiln status` shows where it goes now";
    Aborted "aborted" 0 Failed false User "somebody stopped the rollout" "`kiln audit` shows who";
    LedgerBroken "ledger_broken" 0 Failed false Host "the ledger's chain of hashes does not hold" "somebody or something changed the state folder; restore it from a backup";
    HostUnable "host_unable" 0 Failed false Host "this host lacks something that kiln needs" "`kiln doctor` names each lack and the command that mends it";
    NotRoot "not_root" 0 Failed false Host "kiln serve needs root to make sandboxes" "run it with `sudo` or as a system service";
    StateLocked "state_locked" 0 Failed false Host "another server uses the state folder" "stop it, or name another folder with `--state`";
    AddressInUse "address_in_use" 0 Failed false Host "something else listens on that address" "name another one, or stop what listens there";
    Refused "refused" 0 Failed false User "nobody confirmed it" "confirm with `--yes`";
    NoServer "no_server" 0 Failed true Host "no server answers" "start one with `sudo kiln serve --edge 0.0.0.0:80`, or name it with KILN_ADDR";
    NotAllowed "not_allowed" 403 Failed false Host "the socket may not be used by this user" "use `sudo`, or join the group that owns the socket";
    DiskFull "disk_full" 507 Failed true Host "the disk of the state folder is full" "free some space there; nothing was lost";
    Unavailable "unavailable" 503 Failed true Host "the server is stopping or starting" "try again in a moment";
    Lost "lost" 0 Lost true Host "the connection was lost and did not come back" "`kiln status` shows how it went on";
    Interrupted "interrupted" 0 Interrupted true User "interrupted; what was asked for goes on" "`kiln status` shows how it goes on, `kiln abort` stops it";
    Store "store" 500 Fault true Kiln "the state could not be read or written" "look at the log of `kiln serve` and the disk of the state folder";
    Protocol "protocol" 0 Fault false Kiln "the answer of the server was not understood" "client and server may be of different versions: `kiln version`";
    Internal "internal" 500 Fault true Kiln "kiln failed" "please report it with the log of `kiln serve`";
}

impl Code {
    /// What the table says of it.
    pub fn entry(self) -> &'static Entry {
        // The table has one row per variant, in the order of the variants: both come from one macro.
        &TABLE[self as usize]
    }

    /// Its stable name.
    pub fn name(self) -> &'static str {
        self.entry().name
    }
}

/// The body of every answer that is not a success, and the last line of a stream that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The only field, so that no success can be mistaken for it.
    pub error: WireError,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// Which kind.
    pub code: Code,
    /// In one line, lower case, no final period.
    pub message: String,
    /// What helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The exit code of the command line.
    pub exit: u8,
    /// More lines, such as the other errors of a kiln.toml.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl WireError {
    /// An error of that code, with the table's exit code.
    pub fn new(code: Code, message: impl Into<String>, hint: Option<String>) -> Self {
        Self { code, message: message.into(), hint, exit: code.entry().exit.number(), details: vec![] }
    }
}

/// An error with all its causes in one line, each once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let part = source.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_codes_and_names_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        for (n, entry) in TABLE.iter().enumerate() {
            assert_eq!(entry.code as usize, n);
            assert_eq!(entry.code.entry().name, entry.name);
            assert!(names.insert(entry.name), "{} twice", entry.name);
            assert_eq!(serde_json::to_value(entry.code).unwrap(), entry.name);
            assert!(entry.status == 0 || (400..600).contains(&entry.status), "{}", entry.name);
            assert!(!entry.meaning.ends_with('.') && !entry.help.ends_with('.'), "{}", entry.name);
            assert_eq!(entry.exit == Exit::Fault, entry.fault == Fault::Kiln, "{}", entry.name);
        }
    }

    #[test]
    fn an_error_body_is_stable() {
        let error = WireError::new(Code::NoRelease, "`shop/production` has no release 9", Some("x".into()));
        assert_eq!(
            serde_json::to_string(&ErrorBody { error }).unwrap(),
            r#"{"error":{"code":"no_release","message":"`shop/production` has no release 9","hint":"x","exit":1}}"#
        );
    }

    #[test]
    fn a_chain_repeats_nothing() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
    }
}
