//! The table of ISOLATION.md and the list, held together.

use crate::probes;

const PAGE: &str = include_str!("../../ISOLATION.md");

/// The rows: probe, protection, beside it, without, under Hearth, under crun.
pub fn rows() -> Vec<Vec<String>> {
    let cells = |line: &str| -> Option<Vec<String>> {
        let cells: Vec<_> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::to_owned).collect();
        (cells.len() == 6 && cells[0] != "Probe").then_some(cells)
    };
    PAGE.lines().filter_map(cells).collect()
}

/// Compares all columns but crun's, which needs crun.
pub fn compare() -> Result<(), String> {
    let expected: Vec<Vec<String>> = probes::all()
        .iter()
        .map(|p| {
            let besides: Vec<_> = p.besides.iter().map(|g| g.name()).collect();
            let besides = if besides.is_empty() { "-".to_owned() } else { besides.join(", ") };
            [p.name, p.guard.name(), &besides, "succeeds", p.refused].map(str::to_owned).to_vec()
        })
        .collect();
    let rows = rows();
    let found: Vec<Vec<String>> = rows.iter().map(|row| row[..5].to_vec()).collect();
    let text =
        |rows: &[Vec<String>]| rows.iter().map(|r| format!("| {} |", r.join(" | "))).collect::<Vec<_>>().join("\n");
    if found == expected { Ok(()) } else { Err(format!("ISOLATION.md should say\n{}", text(&expected))) }
}
