//! Which entries the log has: the newest ones in memory, the older ones by their place on disk.

use std::{collections::VecDeque, ops::Range};

use openraft::Membership;

use crate::types::{Entry, LogId, Payload, payload_size};

/// Bytes of the newest entries that stay in memory: what servers that keep up are sent and what is applied is among them.
pub const TAIL_BYTES: u64 = 4 << 20;

/// Where the record of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of the segment.
    pub(super) segment: u64,
    /// The record's first byte in it.
    pub(super) offset: u32,
    /// Its bytes, head included.
    pub(super) length: u32,
}

impl Place {
    fn end(&self) -> u32 {
        self.offset + self.length
    }
}

/// Places in one segment that are read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) segment: u64,
    /// The bytes of the segment.
    pub(super) bytes: Range<u32>,
    /// The index of the first entry.
    pub(super) first: u64,
    /// Where in `bytes` each entry's record is, in order.
    pub(super) records: Vec<Range<usize>>,
}

/// What is there of a range of entries, from its start on.
pub(super) enum Found {
    /// No entry.
    Nothing,
    /// All that there are.
    Entries(Vec<Entry>),
    /// The first ones, which have to be read.
    OnDisk(Stretch),
}

/// The entries of a log, without a gap.
pub(super) struct Window {
    /// The index of the first entry.
    first: u64,
    /// The index behind the last entry.
    end: u64,
    /// The last entry, or the last one that was let go.
    last: Option<LogId>,
    /// Of the first entries, up to the last that is in a file.
    places: VecDeque<Place>,
    /// The last entries; those without a place are among them.
    tail: VecDeque<Entry>,
    tail_bytes: u64,
    max_tail_bytes: u64,
    memberships: VecDeque<(LogId, Membership<u64, openraft::impls::BasicNode>)>,
    purged: Option<LogId>,
}

impl Window {
    pub(super) fn new(max_tail_bytes: u64) -> Self {
        Self {
            first: 0,
            end: 0,
            last: None,
            places: VecDeque::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            max_tail_bytes,
            memberships: VecDeque::new(),
            purged: None,
        }
    }

    /// The last log id that was let go.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// The last log id that is there or was let go.
    pub(super) fn last(&self) -> Option<LogId> {
        self.last
    }

    /// The index of the first entry, where there is one.
    pub(super) fn first(&self) -> Option<u64> {
        (self.first < self.end).then_some(self.first)
    }

    /// The memberships among the entries, the newest first.
    pub(super) fn memberships(
        &self,
    ) -> impl Iterator<Item = &(LogId, Membership<u64, openraft::impls::BasicNode>)> + use<'_> {
        self.memberships.iter().rev()
    }

    /// Adds the next entry.
    pub(super) fn push(&mut self, entry: Entry) {
        if self.first == self.end {
            self.first = entry.log_id.index;
            self.end = self.first;
        }
        debug_assert_eq!(self.end, entry.log_id.index, "entries come without a gap");
        self.end = entry.log_id.index + 1;
        self.last = Some(entry.log_id);
        if let Payload::Membership(membership) = &entry.payload {
            self.memberships.push_back((entry.log_id, membership.clone()));
        }
        self.tail_bytes += payload_size(&entry.payload);
        self.tail.push_back(entry);
        self.shorten();
    }

    /// Says where entries are, from index `first` on, now that they are in a file.
    pub(super) fn written(&mut self, first: u64, places: impl Iterator<Item = Place>) {
        for (index, place) in (first..).zip(places) {
            if index == self.first + self.places.len() as u64 && index < self.end {
                self.places.push_back(place);
            }
        }
        self.shorten();
    }

    /// Lets go of what need not be in memory.
    fn shorten(&mut self) {
        while self.tail_bytes > self.max_tail_bytes
            && self.tail.front().is_some_and(|front| front.log_id.index < self.first + self.places.len() as u64)
        {
            self.pop_front();
        }
        // Give back what a burst took.
        if self.tail.capacity() > 4 * self.tail.len().max(256) {
            self.tail.shrink_to_fit();
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= payload_size(&entry.payload);
        }
    }

    /// Drops the entries behind `after`.
    pub(super) fn truncate_after(&mut self, after: Option<LogId>) {
        let end = after.map_or(0, |id| id.index + 1);
        if end >= self.end {
            return;
        }
        self.end = end.max(self.first);
        self.last = if end > self.first { after } else { self.purged };
        self.places.truncate((self.end - self.first) as usize);
        while self.tail.back().is_some_and(|entry| entry.log_id.index >= self.end) {
            let entry = self.tail.pop_back();
            self.tail_bytes -= entry.map_or(0, |entry| payload_size(&entry.payload));
        }
        while self.memberships.back().is_some_and(|(id, _)| id.index >= self.end) {
            self.memberships.pop_back();
        }
    }

    /// Lets the entries up to `upto` go.
    pub(super) fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(Some(upto));
        let first = upto.index + 1;
        if first <= self.first {
            return;
        }
        self.places.drain(..self.places.len().min((first - self.first) as usize));
        while self.tail.front().is_some_and(|entry| entry.log_id.index < first) {
            self.pop_front();
        }
        while self.memberships.front().is_some_and(|(id, _)| id.index < first) {
            self.memberships.pop_front();
        }
        self.first = first;
        self.end = self.end.max(first);
        if self.places.capacity() > 4 * self.places.len().max(1_024) {
            self.places.shrink_to_fit();
        }
        self.shorten();
    }

    /// What is there of a range. What is on disk comes in stretches of `max_bytes` at most, but for one larger entry.
    pub(super) fn find(&self, range: Range<u64>, max_bytes: u64) -> Found {
        let (start, end) = (range.start.max(self.first), range.end.min(self.end));
        if start >= end {
            return Found::Nothing;
        }
        let tail = self.end - self.tail.len() as u64;
        if start >= tail {
            let (from, to) = ((start - tail) as usize, (end - tail) as usize);
            return Found::Entries(self.tail.range(from..to).cloned().collect());
        }
        let mut places = self.places.range((start - self.first) as usize..(end.min(tail) - self.first) as usize);
        let Some(one) = places.next() else {
            return Found::Nothing;
        };
        let bytes = one.offset..one.end();
        let mut stretch = Stretch { segment: one.segment, bytes, first: start, records: Vec::new() };
        stretch.records.push(0..one.length as usize);
        let more =
            places.take_while(|place| place.segment == one.segment && u64::from(place.end() - one.offset) <= max_bytes);
        for place in more {
            stretch.bytes.end = place.end();
            stretch.records.push((place.offset - one.offset) as usize..(place.end() - one.offset) as usize);
        }
        Found::OnDisk(stretch)
    }
}

#[cfg(test)]
mod tests {
    use hearth_state::Command;
    use hearth_types::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Proposal, log_id};

    /// What a log does.
    #[derive(Clone, Debug)]
    enum Step {
        /// So many entries come.
        Push(u64),
        /// So many of those that are in no file yet get into one.
        Write(u64),
        /// The last so many are dropped.
        Truncate(u64),
        /// The first so many are let go, or some more than there are.
        Purge(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1_u64..9).prop_map(Step::Push),
            4 => (1_u64..12).prop_map(Step::Write),
            1 => (1_u64..6).prop_map(Step::Truncate),
            1 => (1_u64..6).prop_map(Step::Purge),
        ];
        proptest::collection::vec(step, 1..60)
    }

    fn entry(index: u64, term: u64) -> Entry {
        let payload = if index.is_multiple_of(7) {
            Payload::Membership(Membership::new_with_defaults(vec![[index].into()], []))
        } else {
            let command = Command::Initialize { incarnation: "x".into(), now: Timestamp(0) };
            Payload::Normal(Proposal::new(command))
        };
        Entry { log_id: log_id(term, index), payload }
    }

    /// The log that keeps everything: ids, and the places of those that were written.
    #[derive(Default)]
    struct Model {
        entries: VecDeque<(LogId, Option<Place>)>,
        purged: Option<LogId>,
        offset: u32,
    }

    fn ids(window: &Window, model: &Model, range: Range<u64>, max_bytes: u64) -> Vec<LogId> {
        let (mut found, mut range) = (Vec::new(), range);
        loop {
            match window.find(range.clone(), max_bytes) {
                Found::Nothing => return found,
                Found::Entries(entries) => {
                    found.extend(entries.iter().map(|entry| entry.log_id));
                    return found;
                }
                Found::OnDisk(stretch) => {
                    assert!(
                        stretch.records.len() == 1 || u64::from(stretch.bytes.end - stretch.bytes.start) <= max_bytes
                    );
                    for (index, record) in (stretch.first..).zip(&stretch.records) {
                        let offset = stretch.bytes.start + record.start as u32;
                        let place = Place { segment: stretch.segment, offset, length: record.len() as u32 };
                        let (id, _) = model.entries.iter().find(|(_, at)| *at == Some(place)).expect("written there");
                        assert_eq!(id.index, index);
                        found.push(*id);
                    }
                    range.start = stretch.first + stretch.records.len() as u64;
                }
            }
        }
    }

    proptest! {
        /// Whatever of it is in memory, the log has the entries of one that keeps everything.
        #[test]
        fn nothing_is_missing_whatever_is_in_memory(
            steps in steps(), tail in 0_u64..2_000, max_bytes in 1_u64..300, (from, count) in (0_u64..80, 0_u64..80),
        ) {
            let (mut window, mut model) = (Window::new(tail), Model::default());
            for (term, step) in (1..).zip(steps) {
                let next = model.entries.back().map(|(id, _)| *id).or(model.purged).map_or(0, |id| id.index + 1);
                match step {
                    Step::Push(count) => for index in next..next + count {
                        window.push(entry(index, term));
                        model.entries.push_back((log_id(term, index), None));
                    }
                    Step::Write(count) => {
                        let mut first = None;
                        let mut places = Vec::new();
                        let unwritten = model.entries.iter_mut().filter(|(_, place)| place.is_none());
                        for (id, place) in unwritten.take(count as usize) {
                            let length = 20 + (id.index % 50) as u32;
                            first = first.or(Some(id.index));
                            // Something else lies between some of them.
                            model.offset += 3;
                            *place = Some(Place { segment: u64::from(model.offset / 400), offset: model.offset, length });
                            places.push(place.expect("just set"));
                            model.offset += length;
                        }
                        window.written(first.unwrap_or(next), places.into_iter());
                    }
                    Step::Truncate(count) => {
                        // A log waits for what it has before it cuts.
                        let keep = model.entries.len().saturating_sub(count as usize);
                        model.entries.truncate(keep);
                        let last = model.entries.back().map(|(id, _)| *id).or(model.purged);
                        window.truncate_after(last);
                    }
                    Step::Purge(count) => {
                        let first = model.entries.front().map_or(next, |(id, _)| id.index);
                        let upto = first + count - 1;
                        let upto = model.entries.iter().map(|(id, _)| *id).find(|id| id.index == upto);
                        let upto = upto.unwrap_or(log_id(term, first + count + 40));
                        let kept = model.entries.back().is_some_and(|(id, _)| id.index >= upto.index);
                        model.entries.retain(|(id, _)| kept && id.index > upto.index);
                        model.purged = Some(upto);
                        window.purge(upto);
                    }
                }
                let all: Vec<_> = model.entries.iter().map(|(id, _)| *id).collect();
                prop_assert_eq!(window.last(), all.last().copied().or(model.purged));
                prop_assert_eq!(window.first(), all.first().map(|id| id.index));
                prop_assert_eq!(window.purged(), model.purged);
                let members: Vec<_> = window.memberships().map(|(id, _)| *id).collect();
                let expected: Vec<_> = all.iter().rev().filter(|id| id.index.is_multiple_of(7)).copied().collect();
                prop_assert_eq!(members, expected);
                prop_assert_eq!(ids(&window, &model, 0..u64::MAX, max_bytes), all.clone());
                let some: Vec<_> = all.into_iter().filter(|id| (from..from + count).contains(&id.index)).collect();
                prop_assert_eq!(ids(&window, &model, from..from + count, max_bytes), some);
                let written = window.places.len() as u64 + window.first;
                let front = window.tail.front().map_or(u64::MAX, |entry| entry.log_id.index);
                prop_assert!(window.tail_bytes <= tail || front >= written, "more is in memory than has to be");
            }
        }
    }
}
