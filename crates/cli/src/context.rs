//! What every command needs: the project, the client, where to print, and what goes on after an interruption.

use crate::args::Global;
use crate::output::Out;
use crate::{Failure, Roles, project};
use kiln_api::environment::{EnvRequest, Scope};
use kiln_api::{Address, Client, Code};
use kiln_model::{EnvName, ProjectName};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// The environment that is meant when none is named.
pub(crate) const DEFAULT_ENV: &str = "production";

/// The circumstances of one command.
pub struct Context<'a> {
    global: Global,
    roles: &'a dyn Roles,
    out: Out,
    going_on: RefCell<Option<String>>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(global: Global, roles: &'a dyn Roles) -> Self {
        let out = Out::new(global.json);
        Self { global, roles, out, going_on: RefCell::default() }
    }

    pub(crate) fn roles(&self) -> &dyn Roles {
        self.roles
    }

    pub(crate) fn out(&self) -> &Out {
        &self.out
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.global.dir
    }

    /// What `--project` says.
    pub(crate) fn project_option(&self) -> Option<&str> {
        self.global.project.as_deref()
    }

    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let address: Address =
            self.global.addr.parse().map_err(|error: kiln_api::address::AddressError| {
                Failure::new(Code::Usage, error.to_string())
                    .hint("name a socket, as in `KILN_ADDR=unix:/run/kiln/kiln.sock`")
            })?;
        Ok(Client::new(address))
    }

    /// The project that is named or stood in; none means all projects.
    pub(crate) fn project_if_any(&self) -> Result<Option<ProjectName>, Failure> {
        if let Some(name) = &self.global.project {
            let name = ProjectName::new(name.as_str());
            return name.map(Some).map_err(|error| {
                Failure::new(Code::Usage, error.to_string()).hint("give the `name` of a kiln.toml")
            });
        }
        Ok(project::find(self.dir())?.map(|found| found.name))
    }

    /// The project that is named or stood in.
    pub(crate) fn project(&self) -> Result<ProjectName, Failure> {
        self.project_if_any()?.ok_or_else(|| project::missing(self.dir()))
    }

    /// The folder of the project that is stood in.
    pub(crate) fn project_dir(&self) -> Result<PathBuf, Failure> {
        project::find(self.dir())?.map(|found| found.dir).ok_or_else(|| project::missing(self.dir()))
    }

    /// What a command that reads is about.
    pub(crate) fn scope(&self, env: &Option<EnvName>) -> Result<Scope, Failure> {
        Ok(Scope { project: self.project_if_any()?, env: env.clone() })
    }

    /// The environment that a command changes.
    pub(crate) fn env_request(&self, env: &Option<EnvName>) -> Result<EnvRequest, Failure> {
        Ok(EnvRequest { project: self.project()?, env: env_or_default(env) })
    }

    /// Notes what goes on without this process.
    pub(crate) fn goes_on(&self, what: String) {
        self.going_on.replace(Some(what));
    }

    /// The failure of an interrupted command.
    pub(crate) fn interrupted(&self) -> Failure {
        match self.going_on.borrow().as_ref() {
            Some(what) => Failure::new(Code::Interrupted, format!("interrupted; {what} goes on"))
                .hint(Code::Interrupted.entry().help),
            None => Failure::new(Code::Interrupted, "interrupted"),
        }
    }
}

/// `env` or the default one.
pub(crate) fn env_or_default(env: &Option<EnvName>) -> EnvName {
    // The default is a legal name.
    env.clone().unwrap_or_else(|| EnvName::new(DEFAULT_ENV).unwrap_or_else(|_| unreachable!("a legal name")))
}
