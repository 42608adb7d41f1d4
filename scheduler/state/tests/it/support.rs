//! Objects and transactions for tests.

use hearth_state::{Applied, Command, Response, State, apply};
use hearth_types::{
    GroupKind, Object, ObjectKey, RequestId, Revision, Timestamp,
    store::{Expect, Op, OpError, Txn, TxnOutcome},
};
use serde_json::{Value, json};

/// A config map with data.
pub(crate) fn config(name: &str, data: &str) -> Object {
    object(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": data},
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}")}}))
}

pub(crate) fn object(value: Value) -> Object {
    Object::from_value(value).expect("an object")
}

pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::new(GroupKind::CONFIG_MAP, "n", name)
}

pub(crate) fn create(object: Object) -> Op {
    Op::Create { object }
}

pub(crate) fn update(object: Object) -> Op {
    Op::Update { object, expect: Expect::default() }
}

pub(crate) fn delete(name: &str) -> Op {
    Op::Delete { key: key(name), expect: Expect::default() }
}

pub(crate) fn at(revision: u64) -> Expect {
    Expect { revision: Some(Revision(revision)), uid: None }
}

pub(crate) fn txn(id: &str, atomic: bool, ops: Vec<Op>) -> Txn {
    Txn { request_id: RequestId::from(id), atomic, ops, now: Timestamp(1_700_000_000_000) }
}

/// A state that gives every transaction an id of its own.
#[derive(Default)]
pub(crate) struct Region {
    pub(crate) state: State,
    count: u64,
}

impl Region {
    /// One of this feature level.
    pub(crate) fn at_level(level: u32) -> Self {
        let mut region = Self::default();
        region.raise(level);
        region
    }

    pub(crate) fn raise(&mut self, level: u32) {
        apply(&mut self.state, &Command::RaiseFeatureLevel { level, now: Timestamp(0) });
    }

    pub(crate) fn applied(&mut self, txn: Txn) -> Applied {
        apply(&mut self.state, &Command::Txn(txn))
    }

    pub(crate) fn txn(&mut self, atomic: bool, ops: Vec<Op>) -> TxnOutcome {
        self.count += 1;
        let id = format!("request-{}", self.count);
        match self.applied(txn(&id, atomic, ops)).response {
            Response::Txn(outcome) => outcome,
            other => panic!("not the answer to a transaction: {other:?}"),
        }
    }

    pub(crate) fn one(&mut self, op: Op) -> Result<Object, OpError> {
        self.txn(true, vec![op]).outcomes.remove(0)
    }

    pub(crate) fn done(&mut self, op: Op) -> Object {
        self.one(op).expect("the operation is possible")
    }
}
