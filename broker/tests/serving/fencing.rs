//! What keeps a broker away from the authority's key.

use broker::directory::{self, New};
use broker::run::{Error, Options, run};
use proto::key::{Hash, SigningKey};

use crate::cast::{Authority, about, random};

#[test]
fn a_broker_does_not_start_where_it_could_not_shut_itself_out_of_the_authority() {
    let authority = Authority::new();
    let name = format!("causeway-fencing-{}", Hash(random()).short());
    let state = std::env::temp_dir().join(name);
    let new = New {
        key: SigningKey::from_seed(&random()),
        about: about(Some(authority.mesh()), &authority),
        entries: authority.entries.clone(),
    };
    directory::init(&state, &new).unwrap();
    std::fs::create_dir(state.join("authority")).unwrap();
    std::fs::write(state.join("authority/authority.key"), "").unwrap();
    let options = Options {
        state_directory: state.clone(),
        runtime_directory: state.clone(),
        listen: "127.0.0.1:0".parse().unwrap(),
        store: None,
        etcd: Default::default(),
        http: None,
        relay: false,
    };
    let refused = run(options, |_| panic!("it serves"));
    std::fs::remove_dir_all(&state).unwrap();
    assert!(matches!(refused, Err(Error::Within { .. })), "{refused:?}");
}
