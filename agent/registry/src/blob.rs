//! One blob, from a registry to the layout.

use hearth_image::document::Descriptor;
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Method, StatusCode};

use crate::PullError;
use crate::attempts::{Attempts, Failed};
use crate::config::PullLimits;
use crate::door::Door;
use crate::http::Answer;
use crate::layout::{Layout, Partial};
use crate::progress::Progress;

/// Bytes that are collected before they are hashed and written: one hop to a thread for many packets.
const BUFFER_BYTES: usize = 256 * 1024;
/// Bytes that a try must bring so that it does not count as failed: a registry that breaks off every time cannot keep a device busy for ever.
const PROGRESS_BYTES: u64 = 1024 * 1024;
/// How often one blob is begun anew because its pieces did not fit together.
const MAX_RESTARTS: u32 = 2;

/// Downloads a blob into the layout, if it is not there.
///
/// # Guarantees
/// The blob has its name only once all of it was verified and is on the disk. No more than `descriptor.size` bytes and one buffer are taken
/// from an answer. Dropped at any moment, what was written is gone on from by the next call, also of another process.
pub(crate) async fn fetch(
    doors: &[Door<'_>],
    limits: &PullLimits,
    layout: &Layout,
    descriptor: &Descriptor,
    progress: &Progress,
) -> Result<(), PullError> {
    let partial = Partial::open(layout, &descriptor.digest, descriptor.size).await?;
    progress.bytes(0, partial.written());
    let what = format!("blob {}", descriptor.digest);
    let mut download = Download { partial, descriptor, what, progress, pieces: 0 };
    if download.partial.written() > 0 {
        download.pieces = 2;
    }
    let mut attempts = Attempts::new(doors, limits);
    let mut restarts = 0;
    loop {
        let before = download.partial.written();
        let error = match download.once(attempts.door()).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let mut failed = Failed::Plainly;
        if matches!(error, PullError::Corrupt { .. }) {
            if download.pieces > 1 && restarts < MAX_RESTARTS {
                restarts += 1;
                failed = Failed::OnOldBytes;
            }
            download.reset().await?;
        } else if download.partial.written() >= before + PROGRESS_BYTES {
            failed = Failed::WithProgress;
        }
        attempts.after(error, failed).await?;
    }
}

struct Download<'a> {
    partial: Partial,
    descriptor: &'a Descriptor,
    what: String,
    progress: &'a Progress,
    /// Answers that the bytes come from; what an earlier process left counts as several.
    pieces: u32,
}

impl Download<'_> {
    async fn once(&mut self, door: &Door<'_>) -> Result<(), PullError> {
        let size = self.descriptor.size;
        if self.partial.written() < size || self.pieces == 0 {
            self.pieces += 1;
            let from = Some(self.partial.written()).filter(|from| *from > 0);
            let url = door.endpoint.blob(&self.descriptor.digest);
            let answer = door.ask(Method::GET, url, &self.what, "*/*", from).await?;
            self.begin(&answer, from, door.host()).await?;
            self.receive(answer, door.host()).await?;
        }
        if self.partial.finish().await? {
            return Ok(());
        }
        Err(PullError::corrupt(door.host(), &self.what, "its bytes have another digest"))
    }

    /// Checks that the answer goes on where the file ends, or begins anew with it.
    async fn begin(&mut self, answer: &Answer, from: Option<u64>, host: &str) -> Result<(), PullError> {
        let size = self.descriptor.size;
        let bad = |reason: String| Err(PullError::corrupt(host, &self.what, reason));
        match (answer.status, from) {
            (StatusCode::PARTIAL_CONTENT, Some(from)) => match content_range(&answer.headers) {
                Some((first, last, total)) if first == from && last < size && total.is_none_or(|it| it == size) => {
                    Ok(())
                }
                _ => bad(format!("bytes from {from} on were asked for, and others came")),
            },
            (StatusCode::OK, from) => {
                let had = answer.body.content_length();
                if had.is_some_and(|had| had != size) {
                    return bad(format!("it has {} bytes and should have {size}", had.unwrap_or_default()));
                }
                if from.is_some() {
                    self.reset().await?;
                    self.pieces = 1;
                }
                Ok(())
            }
            (status, _) => bad(format!("the answer is {status}, which was not asked for")),
        }
    }

    async fn receive(&self, mut answer: Answer, host: &str) -> Result<(), PullError> {
        let size = self.descriptor.size;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let mut left = size - self.partial.written();
        let end = loop {
            match answer.body.next().await {
                Ok(Some(piece)) if piece.len() as u64 > left => {
                    break Err(PullError::corrupt(host, &self.what, format!("it has more than {size} bytes")));
                }
                Ok(Some(piece)) => {
                    left -= piece.len() as u64;
                    buffer.extend_from_slice(&piece);
                }
                Ok(None) if left > 0 => {
                    break Err(PullError::unreachable(host, format!("{} ended {left} bytes early", self.what)));
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            if buffer.len() >= BUFFER_BYTES {
                buffer = self.write(buffer).await?;
            }
        };
        // Also what came before a failure: the next try goes on after it.
        self.write(buffer).await?;
        end
    }

    async fn write(&self, buffer: Vec<u8>) -> Result<Vec<u8>, PullError> {
        let before = self.partial.written();
        let buffer = self.partial.append(buffer).await?;
        self.progress.bytes(before, self.partial.written());
        Ok(buffer)
    }

    async fn reset(&mut self) -> Result<(), PullError> {
        let before = self.partial.written();
        self.partial.reset().await?;
        self.progress.bytes(before, 0);
        self.pieces = 0;
        Ok(())
    }
}

/// `bytes first-last/total` (RFC 9110, 14.4); the total may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let total = if total == "*" { None } else { Some(number(total)?) };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, 9, Some(10)))),
            ("bytes 5-9/*", Some((5, 9, None))),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes +5-9/10", None),
            ("items 5-9/10", None),
            ("bytes 5-9", None),
            ("bytes 5-99999999999999999999999/10", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]);
            assert_eq!(content_range(&headers), expected, "{text}");
        }
    }
}
