//! `kiln init`: writes a kiln.toml that says what there is to say.

use crate::project::{self, SPEC};
use crate::{Context, Failure};
use clap::Args;
use kiln_api::Code;
use kiln_model::ProjectName;

/// Options of `kiln init`.
#[derive(Debug, Args)]
#[command(
    after_help = "The name is that of the folder, unless `--project NAME` gives another one. An existing kiln.toml is not touched.

Examples:
  kiln init
  kiln init --project shop"
)]
pub struct InitArgs {}

/// The file, less its name. It deploys as it is: a web server for the files of the project.
const TEMPLATE: &str = r#"
# What a server is made of. `kiln lock` pins the packages in kiln.lock.
[images.web]
base     = "debian:bookworm"              # or "scratch": nothing but what is copied
packages = ["python3-minimal", "libpython3-stdlib"]
copy     = [{ from = "./", to = "/srv/web/" }]               # from the commit, into the image

# What runs, how often, and how to know that it works.
[services.web]
image     = "web"
command   = ["/usr/bin/python3", "-B", "-m", "http.server", "--directory", "/srv/web", "8080"]
instances = 2
port      = 8080
resources = { cpu = 1.0, memory = "128MiB", pids = 64 }
health    = { http = "/", every = "1s", timeout = "1s" }    # asked all the time
validate  = [{ http = "/", status = 200 }]                  # asked before the first request comes
rollout   = { drain = "10s", keep_previous = "10m" }
# env      = { LOG_LEVEL = "info" }
# writable = ["/var/cache/web"]            # tmpfs, gone with the instance; all else is read-only
# user     = "www-data"

# What the load balancer sends where.
[[routes]]
path = "/"                                # also host = "www.example.com"
service = "web"

# An environment says only what differs.
[environments.staging]
services.web.instances = 1
routes = [{ host = "staging.example.com", service = "web" }]
"#;

pub(crate) fn run(context: &Context<'_>, _: InitArgs) -> Result<(), Failure> {
    let place = |e: std::io::Error| {
        Failure::new(Code::File, format!("`{}` is not a folder: {e}", context.dir().display()))
            .hint(Code::File.entry().help)
    };
    let dir = context.dir().canonicalize().map_err(place)?;
    let path = dir.join(SPEC);
    if path.exists() {
        let message = format!("`{}` exists already", path.display());
        return Err(Failure::new(Code::File, message).hint("edit it, or remove it first"));
    }
    let name = match context.project_option() {
        Some(name) => {
            ProjectName::new(name).map_err(|e| Failure::new(Code::Usage, e.to_string()))?.to_string()
        }
        None => guess(&dir.file_name().unwrap_or_default().to_string_lossy()),
    };
    project::write(&path, &text(&name))?;
    let document = serde_json::json!({ "name": name, "path": path.display().to_string() });
    context.out().answer(&document, || format!("wrote {}: project `{name}`\n", path.display()))?;
    context.out().hint("edit it, then: `kiln lock`, commit, `kiln deploy`");
    Ok(())
}

fn text(name: &str) -> String {
    format!(
        "# What to run, and of what it is made. All of it: docs/how-to/write-kiln-toml.md, or the schema in docs/kiln.schema.json.\nname = \"{name}\"\n{TEMPLATE}"
    )
}

/// A legal name that resembles the folder's.
fn guess(folder: &str) -> String {
    let mut name = String::new();
    for c in folder.to_lowercase().chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let name = name.get(..40).unwrap_or(name).trim_end_matches('-');
    if name.is_empty() { "app".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_spec::Project;

    #[test]
    fn the_template_is_a_valid_project() {
        let project = Project::parse(&text("shop"), SPEC).unwrap();
        assert_eq!(project.name.as_str(), "shop");
    }

    #[test]
    fn every_folder_gives_a_legal_name() {
        for (folder, name) in
            [("shop", "shop"), ("My Shop_2", "my-shop-2"), ("2048-game", "game"), ("", "app")]
        {
            assert_eq!(guess(folder), name);
        }
        for folder in ["Über/…", "---", "7", &"a-".repeat(60), "ñandú"] {
            assert!(ProjectName::new(guess(folder)).is_ok(), "{folder}");
        }
    }
}
