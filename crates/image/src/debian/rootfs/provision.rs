//! Runs an Ansible playbook in the root, as configuration management would run it on a new server.
//!
//! Ansible lies in a layer of its own over the image's: it is locked like every package, and is not part of the result. All that
//! it needs to write is below `/run`, which no layer keeps. Facts are gathered of the image, not of the host: what names the
//! host, its addresses, its hardware and the time of day is not there to be used.

use super::protocol::ProvisionJob;
use super::script::{Runner, ScriptError};
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Everything of a run.
const DIR: &str = "/run/kiln";
const PLAYBOOK: &str = "/usr/bin/ansible-playbook";
/// Directories that a playbook may rely on, and that an image need not have.
const NEEDED: &[(&str, u32)] = &[("/run", 0o755), ("/tmp", 0o1777), ("/sys", 0o755), ("/var/tmp", 0o1777)];
/// Facts that are the same wherever the image is baked.
const FACTS: &str = "!all,!min,distribution,pkg_mgr,python,user,env,selinux,caps";
/// Characters of a failed task's message.
const MESSAGE_CHARS_MAX: usize = 2000;

/// A playbook did not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProvisionError {
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the image has no `{PLAYBOOK}`")]
    NoAnsible,
    #[error("the playbook has not run")]
    Start(#[source] ScriptError),
    #[error("the playbook failed")]
    Failed { output: String },
}

/// Receives the files of the playbook from `source` and runs it.
pub(super) fn run(job: &ProvisionJob, source: &mut impl Read, runner: &Runner) -> Result<(), ProvisionError> {
    for (dir, mode) in NEEDED {
        let path = Path::new(dir);
        if fs::symlink_metadata(path).is_err() {
            let made = fs::create_dir_all(path)
                .and_then(|()| fs::set_permissions(path, Permissions::from_mode(*mode)));
            made.map_err(|source| ProvisionError::Write { path: path.to_owned(), source })?;
        }
    }
    let dir = Path::new(DIR);
    let play = dir.join("play");
    for name in ["play", "home", "tmp"] {
        let path = dir.join(name);
        fs::create_dir_all(&path).map_err(|source| ProvisionError::Write { path, source })?;
    }
    for file in &job.files {
        receive(&play, file, source)?;
    }
    let inventory = format!(
        "[{}]\nlocalhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n",
        job.group
    );
    for (name, text) in [("inventory", inventory.as_str()), ("ansible.cfg", "")] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|source| ProvisionError::Write { path, source })?;
    }
    if !Path::new(PLAYBOOK).exists() {
        return Err(ProvisionError::NoAnsible);
    }
    let own = play.join("ansible.cfg");
    let config = if own.is_file() { own.display().to_string() } else { format!("{DIR}/ansible.cfg") };
    let variables = [
        ("ANSIBLE_CONFIG", config.as_str()),
        ("ANSIBLE_GATHER_SUBSET", FACTS),
        ("ANSIBLE_HOME", "/run/kiln/home/.ansible"),
        ("ANSIBLE_LOCAL_TEMP", "/run/kiln/tmp"),
        ("ANSIBLE_REMOTE_TEMP", "/run/kiln/tmp"),
        ("ANSIBLE_HOST_PATTERN_MISMATCH", "error"),
        ("ANSIBLE_DEPRECATION_WARNINGS", "0"),
        ("ANSIBLE_RETRY_FILES_ENABLED", "0"),
        ("ANSIBLE_NOCOLOR", "1"),
        ("HOME", "/run/kiln/home"),
        // Byte code would carry the times of this run.
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ];
    let playbook = play.join(&job.playbook).display().to_string();
    let result = runner.run(&[PLAYBOOK, "-u", "root", "-i", "/run/kiln/inventory", &playbook], &variables);
    result.map_err(|error| match error {
        ScriptError::Failed { output, .. } => ProvisionError::Failed { output: failure(&output) },
        error => ProvisionError::Start(error),
    })
}

fn receive(
    play: &Path,
    file: &super::protocol::JobFile,
    source: &mut impl Read,
) -> Result<(), ProvisionError> {
    let path = play.join(&file.path);
    let mut write = || -> io::Result<()> {
        let mut bytes = vec![];
        source.by_ref().take(file.size).read_to_end(&mut bytes)?;
        fs::create_dir_all(path.parent().unwrap_or(play))?;
        if file.mode == 0o120_000 {
            use std::os::unix::ffi::OsStrExt;
            return symlink(std::ffi::OsStr::from_bytes(&bytes), &path);
        }
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, Permissions::from_mode(file.mode & 0o777))
    };
    write().map_err(|source| ProvisionError::Write { path: path.clone(), source })
}

/// The task that failed and what it said, of all that Ansible printed; all of it if there is no such task.
fn failure(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    let Some(at) = lines.iter().position(|line| line.starts_with("fatal: ")) else {
        return output.to_owned();
    };
    let task = lines[..at].iter().rev().find_map(|line| {
        let name = line.strip_prefix("TASK [").or_else(|| line.strip_prefix("RUNNING HANDLER ["))?;
        name.rsplit_once(']').map(|(name, _)| name)
    });
    let json = lines[at].split_once("=> ").map(|(_, json)| json);
    let value: Option<serde_json::Value> = json.and_then(|json| serde_json::from_str(json).ok());
    let said = |key: &str| {
        let text = value.as_ref()?.get(key)?.as_str()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let mut message: Vec<String> = ["msg", "stderr"].into_iter().filter_map(said).collect();
    if message.is_empty() {
        message.push(lines[at].to_owned());
    }
    // One line: what is told of an error is its last lines.
    let message = message.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    format!("task `{}`: {message}", task.unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_that_failed_is_named_with_what_it_said() {
        let output = "PLAY [all] ***\n\nTASK [Gathering Facts] ***\nok: [localhost]\n\nTASK [web : write it] ****\n\
                      fatal: [localhost]: FAILED! => {\"changed\": false, \"msg\": \"no such file\", \"stderr\": \"\"}\n\n\
                      PLAY RECAP ***\nlocalhost : ok=1 failed=1\n";
        assert_eq!(failure(output), "task `web : write it`: no such file");
        assert_eq!(failure("ERROR! no hosts\n"), "ERROR! no hosts\n");
        assert_eq!(failure("fatal: [x]: what\n"), "task `?`: fatal: [x]: what");
    }
}
