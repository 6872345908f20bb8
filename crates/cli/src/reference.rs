//! The reference page of the command line, made of the definition of the command line and of the table of errors, so that
//! it cannot say anything else than the program does.

use crate::args::Cli;
use clap::{Arg, Command, CommandFactory};
use kiln_api::error::TABLE;

/// The page, as Markdown.
pub fn page() -> String {
    let mut root = Cli::command();
    root.build();
    let globals: Vec<String> = root.get_arguments().filter(|a| a.is_global_set()).map(id).collect();
    let mut page = String::from("# Command line\n\n");
    page.push_str(
        "Made by `kiln reference` from the program itself; a test compares the two. Do not edit.\n\n",
    );
    page.push_str(&format!("{}.\n\n## Options of every command\n\n", about(&root)));
    page.push_str(&options(root.get_arguments().filter(|a| a.is_global_set())));
    page.push_str("## Commands\n\n");
    for command in visible(&root) {
        page.push_str(&section(command, &globals, "###", "kiln"));
    }
    page.push_str(&exits());
    page.push_str(&errors());
    page
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help")
}

fn id(argument: &Arg) -> String {
    argument.get_id().to_string()
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn section(command: &Command, globals: &[String], heading: &str, parent: &str) -> String {
    let name = format!("{parent} {}", command.get_name());
    let own = |a: &&Arg| !globals.contains(&id(a)) && !["help", "version"].contains(&id(a).as_str());
    let arguments: Vec<&Arg> = command.get_arguments().filter(own).filter(|a| !a.is_hide_set()).collect();
    let mut text = format!("{heading} `{name}`\n\n{}.\n\n", about(command));
    let subcommands: Vec<&Command> = visible(command).collect();
    if subcommands.is_empty() || !arguments.is_empty() {
        text.push_str(&format!("    {name}{}\n\n", usage(&arguments)));
    }
    text.push_str(&options(arguments.into_iter()));
    if let Some(help) = command.get_after_help() {
        text.push_str(&after_help(&help.to_string()));
    }
    for subcommand in subcommands {
        text.push_str(&section(subcommand, globals, &format!("{heading}#"), &name));
    }
    text
}

/// ` [--env ENV] SERVICE=N…`
fn usage(arguments: &[&Arg]) -> String {
    let mut text = String::new();
    let (named, placed): (Vec<&Arg>, Vec<&Arg>) = arguments.iter().partition(|a| !a.is_positional());
    for argument in named.into_iter().chain(placed) {
        let more = if repeats(argument) { "…" } else { "" };
        let form = match argument.get_long() {
            Some(long) => format!("--{long}{}", value(argument)),
            None => value(argument).trim_start().to_owned(),
        };
        match argument.is_required_set() {
            true => text.push_str(&format!(" {form}{more}")),
            false => text.push_str(&format!(" [{form}]{more}")),
        }
    }
    text
}

fn repeats(argument: &Arg) -> bool {
    matches!(argument.get_action(), clap::ArgAction::Append)
}

/// ` ENV`, or nothing for a switch.
fn value(argument: &Arg) -> String {
    if !argument.get_action().takes_values() {
        return String::new();
    }
    let names = argument.get_value_names().unwrap_or_default();
    names.iter().map(|name| format!(" {name}")).collect()
}

fn options<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let mut rows = String::new();
    for argument in arguments {
        let forms =
            [argument.get_short().map(|c| format!("-{c}")), argument.get_long().map(|l| format!("--{l}"))];
        let forms = forms.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let form = format!("{forms}{}", value(argument));
        let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let defaults: Vec<_> = argument.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        if argument.get_action().takes_values()
            && !argument.is_hide_default_value_set()
            && !defaults.is_empty()
        {
            help.push_str(&format!(" [default: {}]", defaults.join(" ")));
        }
        if let Some(name) = argument.get_env() {
            help.push_str(&format!(" [environment: {}]", name.to_string_lossy()));
        }
        rows.push_str(&format!("| `{}` | {} |\n", form.trim_start(), help.replace('|', "\\|")));
    }
    if rows.is_empty() { rows } else { format!("| option | meaning |\n|---|---|\n{rows}\n") }
}

/// Prose, and the examples as a block.
fn after_help(help: &str) -> String {
    match help.split_once("Examples:\n") {
        None => format!("{}\n\n", help.trim_end()),
        Some((prose, examples)) => {
            let prose =
                if prose.trim().is_empty() { String::new() } else { format!("{}\n\n", prose.trim_end()) };
            let examples: String = examples.lines().map(|line| format!("{}\n", line.trim_start())).collect();
            format!("{prose}```text\n{examples}```\n\n")
        }
    }
}

fn exits() -> String {
    let rows = [
        ("0", "done"),
        ("1", "the request failed; a rollout that was taken back is this"),
        ("2", "kiln itself failed: please report it"),
        ("64", "the command line is wrong"),
        ("75", "the connection was lost; what was asked for goes on"),
        ("130", "interrupted; what was asked for goes on"),
    ];
    let rows: String = rows.iter().map(|(code, meaning)| format!("| {code} | {meaning} |\n")).collect();
    format!("## Exit codes\n\n| code | meaning |\n|---|---|\n{rows}\n")
}

fn errors() -> String {
    let row = |e: &kiln_api::error::Entry| {
        let retry = if e.retryable { "yes" } else { "no" };
        let (exit, fault) = (e.exit.number(), e.fault.word());
        format!("| `{}` | {} | {} | {exit} | {retry} | {fault} |\n", e.name, e.meaning, e.help)
    };
    let rows: String = TABLE.iter().map(row).collect();
    let head = "| code | meaning | what helps | exit | may work later | whose |\n|---|---|---|---|---|---|\n";
    format!(
        "## Errors\n\nWith `--json` a failure is `{{\"error\": {{\"code\", \"message\", \"hint\", \"exit\", \"details\"}}}}`.\n\n{head}{rows}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_the_program_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli.md");
        if std::env::var_os("KILN_UPDATE").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file == page(), "docs/reference/cli.md is out of date: run this test with KILN_UPDATE=1");
    }

    #[test]
    fn every_command_has_a_text_and_examples() {
        fn check(command: &Command) {
            assert!(!about(command).is_empty(), "{}", command.get_name());
            if visible(command).next().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:"), "{}", command.get_name());
                let prose = help.split("Examples:").next().unwrap_or_default();
                // Help is wrapped at 100 columns: a line that ends later than that is ragged.
                let ragged = prose.split("\n\n").find(|text| {
                    let mut lines = text.lines().rev();
                    lines.next();
                    lines.any(|line| line.chars().count() > 100)
                });
                assert_eq!(ragged, None, "{}", command.get_name());
            }
            visible(command).for_each(check);
        }
        let mut root = Cli::command();
        root.build();
        visible(&root).for_each(check);
        Cli::command().debug_assert();
    }
}
