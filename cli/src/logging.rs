//! Words for people, on standard error.

use std::env;
use std::io;

use tracing_subscriber::EnvFilter;

/// `CAUSEWAY_LOG` takes the filters of tracing; `LOG_LEVEL` the three words that wireguard-go knows.
pub(crate) fn start() {
    let filter = directives(
        env::var("CAUSEWAY_LOG").ok().as_deref(),
        env::var("LOG_LEVEL").ok().as_deref(),
    );
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(false)
        .init();
}

fn directives(filter: Option<&str>, level: Option<&str>) -> String {
    match (filter, level) {
        (Some(filter), _) if !filter.is_empty() => filter.to_owned(),
        (_, Some("verbose" | "debug")) => "debug".to_owned(),
        (_, Some("error")) => "error,boringtun=off".to_owned(),
        (_, Some("silent")) => "off".to_owned(),
        // boringtun calls every session that ends of age an error.
        _ => "info,boringtun=off".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_filter_goes_before_the_level_of_wireguard_go() {
        assert_eq!(
            directives(Some("gateway=trace"), Some("silent")),
            "gateway=trace"
        );
        assert_eq!(directives(Some(""), Some("silent")), "off");
        assert_eq!(directives(None, Some("verbose")), "debug");
        assert_eq!(directives(None, Some("error")), "error,boringtun=off");
        assert_eq!(directives(None, Some("loud")), "info,boringtun=off");
        assert_eq!(directives(None, None), "info,boringtun=off");
    }
}
