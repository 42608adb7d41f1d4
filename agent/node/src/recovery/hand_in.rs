//! Copies on their way to a region that was recovered.

use hearth_proto::v1::{HandInBegin, HandInBodies, HandInMessage, hand_in_message::Message};

use super::copies::Kept;

/// Bytes of objects in one message, unless one object alone has more.
const CHUNK: usize = 512 << 10;

/// The messages of a whole hand-in.
pub(super) fn messages(kept: &Kept) -> Vec<HandInMessage> {
    let begin =
        HandInBegin { trust_json: kept.trust().to_json().into(), manifest_json: kept.manifest().to_json().into() };
    let mut messages = vec![Message::Begin(begin)];
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for body in kept.bodies() {
        if bytes + body.len() > CHUNK && !chunk.is_empty() {
            messages.push(Message::Bodies(HandInBodies { bodies: std::mem::take(&mut chunk) }));
            bytes = 0;
        }
        bytes += body.len();
        chunk.push(body.to_vec().into());
    }
    if !chunk.is_empty() {
        messages.push(Message::Bodies(HandInBodies { bodies: chunk }));
    }
    messages.into_iter().map(|message| HandInMessage { message: Some(message) }).collect()
}
