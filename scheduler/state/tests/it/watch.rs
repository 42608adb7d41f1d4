//! What watchers see, by example.

use hearth_state::Expired;
use hearth_types::{
    GroupKind, Object, Reason, Revision, Status,
    selector::{FieldSelector, LabelSelector, Selector},
    store::{Query, WatchEvent},
};
use serde_json::json;

use crate::support::{Region, create, delete, object, update};

fn labelled(label: &str) -> Object {
    object(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": label},
        "metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"app": label}}}))
}

fn query(labels: &str) -> Query {
    let labels = LabelSelector::parse(labels).expect("a selector");
    Query { selector: Selector { labels, ..Selector::default() }, ..Query::all(GroupKind::CONFIG_MAP) }
}

#[test]
fn an_object_enters_and_leaves_a_selection() {
    let mut region = Region::default();
    region.done(create(labelled("web")));
    region.done(update(labelled("db")));
    region.done(update(labelled("web")));
    region.done(delete("a"));
    let seen = |labels: &str| region.state.events_since(Revision::ZERO, &query(labels)).expect("in the history");
    let web = labelled("web");
    assert_eq!(
        seen("app=web"),
        [
            WatchEvent::Added(web.with_revision(Revision(1))),
            WatchEvent::Deleted(web.with_revision(Revision(2))),
            WatchEvent::Added(web.with_revision(Revision(3))),
            WatchEvent::Deleted(web.with_revision(Revision(4))),
        ]
    );
    let db = labelled("db");
    assert_eq!(
        seen("app=db"),
        [WatchEvent::Added(db.with_revision(Revision(2))), WatchEvent::Deleted(db.with_revision(Revision(3)))]
    );
    assert_eq!(seen("app").len(), 4);
    assert_eq!(seen("app=other"), []);
}

#[test]
fn namespaces_kinds_and_fields_select() {
    let mut region = Region::default();
    let pod = |namespace: &str, node: &str| {
        object(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace, "uid": namespace},
            "spec": {"nodeName": node}}),
        )
    };
    region.done(create(pod("a", "")));
    region.done(create(pod("b", "nas")));
    region.done(create(labelled("web")));
    let fields = FieldSelector::parse("spec.nodeName=nas").expect("a selector");
    let on_nas = Query { selector: Selector { fields, ..Selector::default() }, ..Query::all(GroupKind::POD) };
    let seen = |query: &Query| region.state.events_since(Revision::ZERO, query).expect("in the history").len();
    assert_eq!(seen(&on_nas), 1);
    assert_eq!(seen(&Query::all(GroupKind::POD)), 2);
    assert_eq!(seen(&Query { namespace: Some("a".into()), ..Query::all(GroupKind::POD) }), 1);
    assert_eq!(seen(&Query { namespace: Some("c".into()), ..Query::all(GroupKind::POD) }), 0);
}

#[test]
fn what_is_too_old_or_ahead_expires() {
    let mut region = Region::default();
    region.done(create(labelled("web")));
    let ahead = region.state.events_since(Revision(2), &query("app")).expect_err("ahead");
    assert_eq!(ahead, Expired::Ahead { from: Revision(2), revision: Revision(1) });
    assert_eq!(Status::from(ahead).reason, Reason::Expired);
    assert_eq!(region.state.events_since(Revision(1), &query("app")), Ok(vec![]));
}
