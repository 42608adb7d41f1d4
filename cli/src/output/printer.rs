//! Prints objects in the form that was asked for: all at once, or one after the other as they change.

use anyhow::Result;
use hearth_types::registry::KindInfo;
use serde_json::Value;

use super::{
    documents,
    format::Format,
    gathered, line, lines, raw,
    table::{self, Style},
};
use crate::{args::Output, context::now};

/// Objects of one kind.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) info: &'static KindInfo,
    pub(crate) objects: Vec<Value>,
}

/// How to print.
#[derive(Clone, Debug, Default)]
pub(crate) struct Printer {
    pub(crate) format: Option<Format>,
    pub(crate) style: Style,
    pub(crate) no_headers: bool,
    /// What was printed of each kind's table: its headings, and the widths of its columns.
    begun: Vec<(&'static str, Vec<usize>)>,
    /// Whether a document was printed: the next is set off by `---`.
    documents: usize,
}

impl Printer {
    /// A printer for a form and style.
    pub(crate) fn new(format: Option<Format>, style: Style, no_headers: bool) -> Self {
        Self { format, style, no_headers, ..Self::default() }
    }

    /// Prints everything at once; `one`: the only object is printed as itself, not as a list.
    pub(crate) fn all(&mut self, sections: &[Section], one: bool) -> Result<()> {
        let values = || sections.iter().flat_map(|section| section.objects.iter().cloned()).collect::<Vec<_>>();
        match &self.format {
            Some(Format::Json) => documents(&values(), !one, Output::Json)?,
            Some(Format::Yaml) => documents(&values(), !one, Output::Yaml)?,
            Some(Format::JsonPath(template)) => raw(&template.render(&gathered(&values(), !one))),
            Some(Format::Name) => self.each(sections)?,
            Some(Format::Columns(columns)) => {
                let heading = columns.iter().map(|column| column.heading.clone()).collect();
                let rows =
                    values().iter().map(|object| columns.iter().map(|column| column.cell(object)).collect()).collect();
                self.table(heading, rows);
            }
            None | Some(Format::Wide) => {
                for (at, section) in sections.iter().filter(|section| !section.objects.is_empty()).enumerate() {
                    if at > 0 {
                        line("");
                    }
                    let heading = table::headings(section.info, &self.style);
                    let rows: Vec<_> =
                        section.objects.iter().map(|one| table::row(section.info, one, now(), &self.style)).collect();
                    self.table(heading, rows);
                }
            }
        }
        Ok(())
    }

    fn table(&self, heading: Vec<String>, rows: Vec<Vec<String>>) {
        let heading = (!self.no_headers).then_some(heading);
        lines(&table::layout(&heading.into_iter().chain(rows).collect::<Vec<_>>()));
    }

    /// Prints what is there before changes are followed: as tables, else one object after the other.
    pub(crate) fn begin(&mut self, sections: &[Section]) -> Result<()> {
        if !Format::is_table(self.format.as_ref()) {
            return self.each(sections);
        }
        for section in sections.iter().filter(|section| !section.objects.is_empty()) {
            let rows: Vec<_> =
                section.objects.iter().map(|one| table::row(section.info, one, now(), &self.style)).collect();
            self.rows(section.info, rows);
        }
        Ok(())
    }

    fn each(&mut self, sections: &[Section]) -> Result<()> {
        for section in sections {
            for object in &section.objects {
                self.object(section.info, object)?;
            }
        }
        Ok(())
    }

    /// Prints one object after those before it.
    pub(crate) fn object(&mut self, info: &'static KindInfo, object: &Value) -> Result<()> {
        match &self.format {
            Some(Format::Json) => documents(std::slice::from_ref(object), false, Output::Json)?,
            Some(Format::Yaml) => {
                if self.documents > 0 {
                    line("---");
                }
                documents(std::slice::from_ref(object), false, Output::Yaml)?;
            }
            Some(Format::Name) => line(&info.display_name(object["metadata"]["name"].as_str().unwrap_or_default())),
            Some(Format::JsonPath(template)) => raw(&template.render(object)),
            Some(Format::Columns(columns)) => {
                let cells: Vec<_> = columns.iter().map(|column| column.cell(object)).collect();
                let heading = columns.iter().map(|column| column.heading.clone()).collect();
                self.under("", heading, vec![cells]);
            }
            None | Some(Format::Wide) => {
                let row = table::row(info, object, now(), &self.style);
                self.rows(info, vec![row]);
            }
        }
        self.documents += 1;
        Ok(())
    }

    fn rows(&mut self, info: &'static KindInfo, rows: Vec<Vec<String>>) {
        self.under(info.kind, table::headings(info, &self.style), rows);
    }

    /// Rows under the headings of their table, which come with its first rows. The widths of those hold on, so
    /// that later rows stand under them.
    fn under(&mut self, of: &'static str, heading: Vec<String>, rows: Vec<Vec<String>>) {
        if let Some((_, widths)) = self.begun.iter().find(|(kind, _)| *kind == of) {
            lines(&rows.iter().map(|row| table::line(row, widths)).collect::<Vec<_>>());
            return;
        }
        let mut all = rows;
        all.insert(0, heading);
        let widths = table::widths(&all);
        lines(&all.iter().skip(usize::from(self.no_headers)).map(|row| table::line(row, &widths)).collect::<Vec<_>>());
        self.begun.push((of, widths));
    }
}
