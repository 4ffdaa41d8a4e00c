//! The optional TOML file: its keys are the names of flags. A flag goes before its environment
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
    let known = flags(&command);
    for (key, _) in &values {
        if !known.contains(key) {
            return Err(format!(
                "{}: there is no flag --{key}, so there is no key {key}; the keys are the names of flags",
                path.display()
            ));
        }
    }
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

/// Keys and their values as the texts a flag would get.
fn parse(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The whole error shows the line, which is what one wants to see.
        error.to_string().trim_end().to_owned()
    })?;
    table
        .into_iter()
        .map(|(key, value)| {
            let values = match value {
                toml::Value::Array(values) => values
                    .into_iter()
                    .map(|value| one(&key, value))
                    .collect::<Result<_, _>>()?,
                toml::Value::String(_)
                | toml::Value::Integer(_)
                | toml::Value::Float(_)
                | toml::Value::Boolean(_)
                | toml::Value::Datetime(_)
                | toml::Value::Table(_) => vec![one(&key, value)?],
            };
            Ok((key, values))
        })
        .collect()
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

/// The names of all flags of all commands.
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

fn with_defaults(command: Command, values: &[(String, Vec<String>)]) -> Command {
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
        command.mut_subcommand(name, |below| with_defaults(below, values))
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
    fn what_is_no_value_of_a_flag_is_named() {
        assert!(parse("site = 1.5").unwrap_err().contains("site"));
        assert!(parse("site = {a = 1}").unwrap_err().contains("site"));
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
