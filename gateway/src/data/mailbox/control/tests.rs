use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use proto::control::{Control, Hello};
use proto::key::SigningKey;

use super::*;

const PLACE: LinkPlace = LinkPlace { thread: 1, slot: 2 };

fn from() -> Endpoint {
    Endpoint {
        remote: ([192, 0, 2, 1], 7).into(),
        local: None,
    }
}

fn is_awake(inbox: &ControlInbox) -> bool {
    let mut fds = [PollFd::new(inbox.fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn control_packets_are_bounded_in_number() {
    let inbox = ControlInbox::for_mesh().unwrap();
    let taken = (0..5000)
        .filter(|_| inbox.push_packet(PLACE, from(), &[0; 40]))
        .count();
    assert_eq!(taken, CONTROL_PACKETS);
}

#[test]
fn control_packets_are_bounded_in_bytes_and_room_comes_back() {
    let inbox = ControlInbox::for_mesh().unwrap();
    let packet = vec![0; 9216];
    let fill = || {
        (0..5000)
            .filter(|_| inbox.push_packet(PLACE, from(), &packet))
            .count()
    };
    let fit = CONTROL_BYTES / packet.len();
    assert_eq!(fill(), fit);
    let popped = std::iter::from_fn(|| inbox.pop_packet()).count();
    assert_eq!((popped, fill()), (fit, fit));
}

#[test]
fn who_looks_anyway_is_woken_only_by_what_may_not_wait() {
    let inbox = ControlInbox::for_mesh().unwrap();
    let (from, to) = ([1, 2].map(|seed| SigningKey::from_seed(&[seed; 32]).public())).into();
    let hello = Control::Hello(Hello {
        boot: 1,
        number: 1,
        interval: 1000,
        heard: None,
        carries: true,
    });
    let push = |message: &Control| {
        let packet = control::packet(message, &from, &to, 0);
        assert!(inbox.push_packet(PLACE, self::from(), &packet));
    };
    push(&hello);
    assert!(is_awake(&inbox));
    inbox.woke();
    inbox.look_from_now_on();
    push(&hello);
    assert!(!is_awake(&inbox));
    push(&Control::Ping { id: 1 });
    assert!(is_awake(&inbox));
    assert_eq!(std::iter::from_fn(|| inbox.pop_packet()).count(), 3);
}

#[test]
fn only_what_a_reflector_may_say_is_taken_for_its_word() {
    let inbox = ControlInbox::for_mesh().unwrap();
    inbox.handle_question(from().remote);
    for datagram in [&[][..], &[4, 0, 0, 0], &[REFLECTED_KIND; 513]] {
        assert!(!inbox.push_reflected(from().remote, datagram));
    }
    assert!(inbox.push_reflected(from().remote, &[REFLECTED_KIND, 1]));
    let reflected = inbox.pop_reflected().unwrap();
    assert_eq!(*reflected.datagram, [REFLECTED_KIND, 1]);
    assert_eq!(reflected.from, from().remote);
}

#[test]
fn who_was_not_asked_reflects_nothing_and_wakes_nobody() {
    let inbox = ControlInbox::for_mesh().unwrap();
    let answer = [REFLECTED_KIND, 1];
    assert!(!inbox.push_reflected(from().remote, &answer));
    inbox.handle_question(from().remote);
    for stranger in ["192.0.2.1:8", "192.0.2.2:7"] {
        assert!(!inbox.push_reflected(stranger.parse().unwrap(), &answer));
    }
    assert!(!is_awake(&inbox));
    // As a socket of both families may show it.
    let mapped = "[::ffff:192.0.2.1]:7".parse().unwrap();
    assert!(inbox.push_reflected(mapped, &answer));
    assert!(is_awake(&inbox));
}

#[test]
fn of_reflectors_the_last_that_were_asked_are_known() {
    let mut asked = Asked::default();
    let reflector = |host: u8| SocketAddr::from(([192, 0, 2, host], 7800));
    for host in 1..=ASKED as u8 + 1 {
        asked.handle_question(reflector(host));
        asked.handle_question(reflector(2));
    }
    assert_eq!(asked.reflectors.len(), ASKED);
    assert!(!asked.admits(reflector(1), Duration::default));
    assert!(asked.admits(reflector(2), Duration::default));
    assert!(asked.admits(reflector(ASKED as u8 + 1), Duration::default));
}

#[test]
fn of_one_that_was_asked_a_bounded_number_a_second_is_taken() {
    let mut asked = Asked::default();
    asked.handle_question(from().remote);
    let mut flood = |second: u64| {
        (0..1000)
            .filter(|_| asked.admits(from().remote, || Duration::from_secs(second)))
            .count()
    };
    assert_eq!([flood(5), flood(5), flood(6)], [64, 0, 64]);
}

#[test]
fn outside_a_mesh_nothing_of_one_is_taken() {
    let inbox = ControlInbox::new().unwrap();
    let news = News::Session {
        place: PLACE,
        from: from(),
    };
    assert!(!inbox.push_packet(PLACE, from(), &[0; 40]));
    assert!(!inbox.push_news(news));
    assert!(!inbox.push_reflected(from().remote, &[REFLECTED_KIND]));
    assert!(!is_awake(&inbox), "nobody is woken for nothing");
}

#[test]
fn control_is_woken_once_for_all_that_comes_before_it_looks() {
    let inbox = ControlInbox::for_mesh().unwrap();
    assert!(!is_awake(&inbox));
    for _ in 0..3 {
        inbox.push_packet(PLACE, from(), &[0; 40]);
    }
    assert!(is_awake(&inbox));
    inbox.woke();
    assert!(!is_awake(&inbox));
    assert_eq!(std::iter::from_fn(|| inbox.pop_packet()).count(), 3);
    inbox.push_packet(PLACE, from(), &[0; 40]);
    assert!(is_awake(&inbox));
}
