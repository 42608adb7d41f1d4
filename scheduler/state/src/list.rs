//! Lists in pages that all show one revision.

use std::ops::Bound;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hearth_types::{
    GroupKind, Incarnation, ObjectKey, Reason, Revision, Status,
    store::{ListPage, MAX_PAGE, Query},
};
use serde::{Deserialize, Serialize};

use crate::{history::Expired, ops::Objects, state::State};

/// The longest continue token in characters that is read: two names of 253 bytes, an incarnation and a revision fit
/// four times.
pub const MAX_TOKEN_CHARS: usize = 4_096;
const TOKEN_VERSION: u8 = 1;

/// Why a page cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The token is none of ours.
    #[error("cannot read the continue token: {0}; pass it as it was returned, or list from the start")]
    Token(&'static str),
    /// The token is of other data (another incarnation).
    #[error("the continue token is of another incarnation of the region; list from the start")]
    Incarnation,
    /// The list's revision is no longer in the history.
    #[error("the list can no longer be continued: {0}")]
    Expired(#[from] Expired),
}

impl From<ListError> for Status {
    fn from(error: ListError) -> Self {
        let reason = if matches!(error, ListError::Token(_)) { Reason::BadRequest } else { Reason::Expired };
        Self::new(reason, error.to_string())
    }
}

/// Where a list goes on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    version: u8,
    incarnation: Option<Incarnation>,
    revision: Revision,
    kind: GroupKind,
    namespace: Box<str>,
    name: Box<str>,
}

impl Token {
    fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(postcard::to_stdvec(self).expect("writing to memory"))
    }

    fn read(text: &str) -> Result<Self, ListError> {
        if text.len() > MAX_TOKEN_CHARS {
            return Err(ListError::Token("too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ListError::Token("not base64"))?;
        match postcard::take_from_bytes::<Self>(&bytes) {
            Ok((token, [])) if token.version == TOKEN_VERSION => Ok(token),
            Ok(_) => Err(ListError::Token("of another version")),
            Err(_) => Err(ListError::Token("damaged")),
        }
    }
}

impl State {
    /// A page of what a query selects, in the order of namespace and name. The first page shows the present, later ones
    /// the revision of the first. `limit` 0 and above [`MAX_PAGE`] mean [`MAX_PAGE`].
    pub fn list(&self, query: &Query, limit: usize, token: Option<&str>) -> Result<ListPage, ListError> {
        let limit = if limit == 0 { MAX_PAGE } else { limit.min(MAX_PAGE) };
        let (objects, revision, start) = match token {
            None => (self.objects().clone(), self.revision(), Bound::Included(first_key(query))),
            Some(token) => {
                let token = Token::read(token)?;
                if token.kind != query.kind {
                    return Err(ListError::Token("of a list of another kind"));
                }
                if token.incarnation.as_ref() != self.incarnation() {
                    return Err(ListError::Incarnation);
                }
                let objects = self.objects_at(token.revision, &query.kind)?;
                let last = ObjectKey { kind: token.kind, namespace: token.namespace, name: token.name };
                // A token of a list of all namespaces does not reach before the one that is asked for now.
                (objects, token.revision, Bound::Excluded(last.max(first_key(query))))
            }
        };
        let in_range = |key: &ObjectKey| {
            key.kind == query.kind && query.namespace.as_deref().is_none_or(|wanted| *wanted == *key.namespace)
        };
        let mut found = objects
            .range::<_, ObjectKey>((start, Bound::Unbounded))
            .take_while(|(key, _)| in_range(key))
            .filter(|(_, object)| query.selector.matches(object));
        let items: Vec<_> = found.by_ref().take(limit).map(|(_, object)| object.clone()).collect();
        let counts = query.selector.labels.is_empty() && query.selector.fields.is_empty();
        let more = found.next().is_some();
        let remaining = match (more, counts) {
            (false, _) => Some(0),
            (true, true) => Some(1 + found.count() as u64),
            (true, false) => None,
        };
        let continue_token = items.last().filter(|_| more).map(|last| {
            Token {
                version: TOKEN_VERSION,
                incarnation: self.incarnation().cloned(),
                revision,
                kind: query.kind.clone(),
                namespace: last.namespace().into(),
                name: last.name().into(),
            }
            .write()
        });
        Ok(ListPage { items, revision, continue_token, remaining })
    }

    /// The objects as they were at a revision, as far as one kind goes.
    fn objects_at(&self, revision: Revision, kind: &GroupKind) -> Result<Objects, Expired> {
        self.history().check(revision)?;
        let mut objects = self.objects().clone();
        for change in self.history().after(revision).rev() {
            if change.now.kind() == kind {
                change.undo(&mut objects);
            }
        }
        Ok(objects)
    }
}

/// A key that is not behind any that the query selects.
fn first_key(query: &Query) -> ObjectKey {
    ObjectKey::new(query.kind.clone(), query.namespace.as_deref().unwrap_or_default(), "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_survive_their_text() {
        let token = Token {
            version: TOKEN_VERSION,
            incarnation: Some(Incarnation::from("i")),
            revision: Revision(u64::MAX),
            kind: GroupKind::DEPLOYMENT,
            namespace: "n".into(),
            name: "a".repeat(253).into(),
        };
        assert_eq!(Token::read(&token.write()), Ok(token));
    }

    proptest! {
        #[test]
        fn arbitrary_tokens_never_panic(text in ".{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Token::read(&text);
            let _ = State::default().list(&Query::all(GroupKind::POD), 1, Some(&URL_SAFE_NO_PAD.encode(bytes)));
        }
    }
}
