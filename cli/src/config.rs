//! The optional TOML file: its keys are the names of flags, for all commands or in the table of
//! one (`[broker.run]`). A flag goes before its environment
//! variable, the variable before the file, the file before what is built in.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;

const FLAG: &str = "--config";
const VARIABLE: &str = "CAUSEWAY_CONFIG";

/// A wrong file is wrong usage: the text says what to change.
pub(crate) fn apply(command: Command, arguments: &[OsString]) -> Result<Command, String> {
    let Some(path) = path(arguments) else {
        return Ok(command);
    };
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read the configuration {}: {error}", path.display()))?;
    let values = parse(&text).map_err(|why| format!("{}: {why}", path.display()))?;
    check(&command, &values).map_err(|why| format!("{}: {why}", path.display()))?;
    Ok(with_defaults(command, &values))
}

/// Looked for before clap reads the line, since it changes what clap is told.
fn path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut words = arguments.iter().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--") => break,
            Some(FLAG) => return words.next().map(PathBuf::from),
            Some(text) => {
                let value = text
                    .strip_prefix(FLAG)
                    .and_then(|rest| rest.strip_prefix('='));
                if let Some(value) = value {
                    return Some(Path::new(value).to_owned());
                }
            }
            None => {}
        }
    }
    std::env::var_os(VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// What stands in the file, as the texts that flags would get.
#[derive(Debug, Default)]
struct Section {
    flags: Vec<(String, Vec<String>)>,
    /// Tables, named for the commands they are for.
    commands: Vec<(String, Section)>,
}

fn parse(text: &str) -> Result<Section, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The whole error shows the line, which is what one wants to see.
        error.to_string().trim_end().to_owned()
    })?;
    section(table)
}

fn section(table: toml::Table) -> Result<Section, String> {
    let mut section_of = Section::default();
    for (key, value) in table {
        let values = match value {
            toml::Value::Table(table) => {
                section_of.commands.push((key, section(table)?));
                continue;
            }
            toml::Value::Array(values) => values
                .into_iter()
                .map(|value| one(&key, value))
                .collect::<Result<_, _>>()?,
            toml::Value::String(_)
            | toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_) => vec![one(&key, value)?],
        };
        section_of.flags.push((key, values));
    }
    Ok(section_of)
}

fn one(key: &str, value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        toml::Value::Float(_)
        | toml::Value::Datetime(_)
        | toml::Value::Array(_)
        | toml::Value::Table(_) => Err(format!(
            "{key} must be a text, a number, true or false, or a list of texts"
        )),
    }
}

/// A key that no flag has is a mistake that would otherwise go unnoticed.
fn check(command: &Command, section: &Section) -> Result<(), String> {
    let known = flags(command);
    let name = command.get_name();
    for (key, _) in &section.flags {
        if !known.contains(key) {
            return Err(format!(
                "{name} has no flag --{key}, so there is no key {key}; the keys are the names of flags"
            ));
        }
    }
    for (key, below) in &section.commands {
        let found = command.find_subcommand(key).ok_or_else(|| {
            format!("{name} has no command {key}, so there is no table {key}; tables have the names of commands")
        })?;
        check(found, below)?;
    }
    Ok(())
}

/// The names of all flags of this command and those below it.
fn flags(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter(|flag| !flag.is_hide_set());
    let mut names: BTreeSet<String> = own
        .filter_map(|flag| flag.get_long().map(str::to_owned))
        .collect();
    for below in command.get_subcommands() {
        names.extend(flags(below));
    }
    names
}

/// Keys count for all commands below; the table of a command goes before what stands above it.
fn with_defaults(command: Command, section: &Section) -> Command {
    let mut command = with_flags(command, &section.flags);
    for (name, below) in &section.commands {
        command = command.mut_subcommand(name, |found| with_defaults(found, below));
    }
    command
}

fn with_flags(command: Command, values: &[(String, Vec<String>)]) -> Command {
    let command = command.mut_args(|flag| {
        let found = values
            .iter()
            .find(|(key, _)| flag.get_long() == Some(key.as_str()));
        let Some((_, texts)) = found else {
            return flag;
        };
        let texts: Vec<clap::builder::OsStr> =
            texts.iter().map(|text| text.to_owned().into()).collect();
        flag.required(false).default_values(texts)
    });
    let names: Vec<String> = command
        .get_subcommands()
        .map(|below| below.get_name().to_owned())
        .collect();
    names.iter().fold(command, |command, name| {
        command.mut_subcommand(name, |below| with_flags(below, values))
    })
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        Command::new("t").subcommand(
            Command::new("go")
                .arg(Arg::new("site").long("site").required(true))
                .arg(
                    Arg::new("cidr")
                        .long("cidr")
                        .action(ArgAction::Append)
                        .value_delimiter(','),
                )
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue))
                .arg(Arg::new("uses").long("uses").default_value("1")),
        )
    }

    #[test]
    fn the_file_fills_in_what_the_line_does_not_say() {
        let values =
            parse("site = \"berlin\"\ncidr = [\"a\", \"b\"]\njson = true\nuses = 3").unwrap();
        let command = with_defaults(command(), &values);
        let found = command
            .clone()
            .try_get_matches_from(["t", "go", "--site", "paris"])
            .unwrap();
        let (_, found) = found.subcommand().unwrap();
        assert_eq!(found.get_one::<String>("site").unwrap(), "paris");
        assert_eq!(found.get_one::<String>("uses").unwrap(), "3");
        assert!(found.get_flag("json"));
        let cidrs: Vec<&String> = found.get_many("cidr").unwrap().collect();
        assert_eq!(cidrs, ["a", "b"]);
        let found = command.try_get_matches_from(["t", "go"]).unwrap();
        let (_, found) = found.subcommand().unwrap();
        assert_eq!(found.get_one::<String>("site").unwrap(), "berlin");
    }

    #[test]
    fn the_table_of_a_command_goes_before_what_stands_above_it() {
        let values = parse("site = \"berlin\"\nuses = 3\n[go]\nsite = \"paris\"").unwrap();
        check(&command(), &values).unwrap();
        let found = with_defaults(command(), &values)
            .try_get_matches_from(["t", "go"])
            .unwrap();
        let (_, found) = found.subcommand().unwrap();
        assert_eq!(found.get_one::<String>("site").unwrap(), "paris");
        assert_eq!(found.get_one::<String>("uses").unwrap(), "3");
    }

    #[test]
    fn what_is_no_value_of_a_flag_is_named() {
        assert!(parse("site = 1.5").unwrap_err().contains("site"));
        let table = parse("site = {a = 1}").unwrap();
        assert!(
            check(&command(), &table)
                .unwrap_err()
                .contains("no command site")
        );
        let table = parse("[go]\ntown = 1").unwrap();
        assert!(
            check(&command(), &table)
                .unwrap_err()
                .contains("go has no flag --town")
        );
        assert!(parse("site = ").is_err());
        assert!(flags(&command()).contains("cidr"));
    }

    #[test]
    fn the_file_is_found_by_flag() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(path(&words("t --config a.toml go")), Some("a.toml".into()));
        assert_eq!(path(&words("t go --config=b.toml")), Some("b.toml".into()));
    }
}
