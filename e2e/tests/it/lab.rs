//! The laboratory of lines: each is first what it is said to be.

use anyhow::{Context as _, Result};
use hearth_e2e::nat::{Behaviour, Internet, Kind};

#[test]
fn every_line_of_the_laboratory_maps_and_filters_as_it_is_said_to() -> Result<()> {
    let internet = Internet::new()?;
    for (number, kind) in (1..).zip(Kind::ALL) {
        let home = internet.home(kind, number)?;
        let measured = Behaviour::measure(&home.netns, &internet).with_context(|| format!("{kind:?}"))?;
        assert_eq!(measured, kind.behaviour(), "{kind:?}");
    }
    Ok(())
}
