//! A relay's pass, as somebody shows it: none is taken that the region did not sign for its bearer and this time; the first byte says what is
//! made of the rest.
#![no_main]

use hearth_types::{
    DeviceKey, Timestamp,
    recovery::SigningKey,
    relay::{Pass, Relay, check_url},
};

const NOW: Timestamp = Timestamp(1_800_000_000_000);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (region, bearer) = (SigningKey::from_seed(&[1; 32]), DeviceKey([2; 32]));
    let check = |text: &str| Pass::check(text, region.public(), &bearer, NOW);
    if how & 1 == 0 {
        assert!(check(text).is_err());
        let good = Pass::of_device(bearer, "alice", NOW).sign(&region);
        // Nothing can be put before it, behind it, or in the place of a part of it.
        for at in [0, good.len() / 2, good.len()] {
            let other = format!("{}{text}{}", &good[..at], &good[at..]);
            assert!(text.is_empty() || check(&other).is_err(), "{other}");
        }
    } else {
        // Signed as the region does it, whatever it says: this shows the reader behind the signature.
        let context = b"hearth.dev relay pass\0";
        let signature = region.sign(&[&context[..], rest].concat());
        if let Ok(pass) = check(&format!("{text}:{signature}")) {
            assert!(pass.key == bearer && pass.not_after >= NOW);
            assert_eq!(check(&pass.sign(&region)), Ok(pass));
        }
    }
    if check_url(text).is_ok() {
        let object = serde_json::json!({"metadata": {"name": "r"}, "spec": {"url": text, "discoveryPort": 1}});
        assert!(Relay::read(&object).is_some());
    }
});
