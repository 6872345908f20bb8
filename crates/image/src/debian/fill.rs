//! `kiln internal mirror DIR [--from MIRROR] [--keyring FILE] [NAME...]...`: fills a directory that serves as `--mirror file:DIR`.
//!
//! Tests and the demo call it once, with a network, and bake from the directory ever after without one. Packages are
//! given as they stand in a recipe; each argument is one image, its packages separated by commas, after `slim:` if it
//! stands on `debian-slim`.

use super::mirror::{Mirror, fetch_into};
use super::{lock, resolve_lock};
use kiln_spec::RecipeName;
use kiln_spec::lock::DebianRecipe;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

const RELEASE: &str = "bookworm";

/// Runs the command with the arguments after `mirror`.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    match run(args.into_iter().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> Result<(), Box<dyn Error>> {
    let mut args = args.into_iter();
    let dir = PathBuf::from(
        args.next().ok_or("usage: `mirror DIR [--from MIRROR] [--keyring FILE] [NAME,NAME]...`")?,
    );
    let (mut from, mut keyring) = (None, None);
    let mut recipes: BTreeMap<RecipeName, DebianRecipe> = BTreeMap::new();
    while let Some(arg) = args.next() {
        if arg == "--from" {
            from = args.next();
            continue;
        }
        if arg == "--keyring" {
            keyring = args.next().map(PathBuf::from);
            continue;
        }
        let (slim, names) = arg.strip_prefix("slim:").map_or((false, arg.as_str()), |names| (true, names));
        let packages = names.split(',').map(str::to_owned).filter(|name| !name.is_empty()).collect();
        let recipe = DebianRecipe { suite: RELEASE.to_owned(), slim, packages };
        recipes.insert(format!("image{}", recipes.len()).parse()?, recipe);
    }
    let mirror = Mirror::open(from.as_deref(), RELEASE, keyring.as_deref())?;
    let lock: Result<_, lock::LockError> = resolve_lock(&mirror, &recipes, None, false);
    let lock = lock?;
    let mut n_files = 0;
    fetch_into(&mirror, &dir, RELEASE, &lock.packages, |_| n_files += 1)?;
    println!("{}: {} packages, {n_files} files fetched", dir.display(), lock.packages.len());
    Ok(())
}
