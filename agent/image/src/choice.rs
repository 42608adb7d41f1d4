//! Which of the images that an index offers suits a platform: one rule for whoever imports and whoever pulls, so that an import finds what
//! was pulled for it.

use crate::platform::Fit;
use crate::spec::{ConfigDocument, Descriptor, clip};
use crate::{Digest, Platform};

/// The best so far. `W` is how the image was come by.
#[derive(Debug)]
pub struct Choice<'a, W> {
    wanted: &'a Platform,
    best: Option<(Fit, Descriptor, W)>,
    had: Vec<String>,
}

impl<'a, W> Choice<'a, W> {
    /// Nothing was offered yet.
    pub fn new(wanted: &'a Platform) -> Self {
        Self { wanted, best: None, had: Vec::new() }
    }

    /// One more image, for this platform. Of two that suit equally well the first is kept.
    pub fn offer(&mut self, descriptor: &Descriptor, platform: &Platform, way: W) {
        // Build attestations are listed beside images, for a platform that is none.
        if platform.os != "unknown" {
            self.had.push(clip(&platform.to_string()));
        }
        let Some(fit) = self.wanted.fit(platform) else { return };
        if self.best.as_ref().is_none_or(|(best, ..)| *best < fit) {
            self.best = Some((fit, descriptor.clone(), way));
        }
    }

    /// The best of all, or the platforms that were offered, in words.
    pub fn best(mut self) -> Result<(Descriptor, W), String> {
        match self.best {
            Some((_, descriptor, way)) => Ok((descriptor, way)),
            None if self.had.is_empty() => Err("no platform at all".into()),
            None => {
                self.had.sort();
                self.had.dedup();
                Err(self.had.join(", "))
            }
        }
    }
}

/// Whether an image that was chosen is what its index said: its own platform suits, too. Else that platform, in words.
pub fn check_platform(wanted: &Platform, descriptor: &Descriptor, config: &ConfigDocument) -> Result<(), String> {
    let mut platform = config.platform.clone();
    if platform.variant.is_none() {
        platform.variant = descriptor.platform.as_ref().and_then(|platform| platform.variant.clone());
    }
    wanted.fit(&platform).map(drop).ok_or_else(|| platform.to_string())
}

/// Whether a manifest and its configuration have as many layers. Else how they differ, in words.
pub fn check_layers(layers: usize, diff_ids: &[Digest]) -> Result<(), String> {
    if layers == diff_ids.len() {
        return Ok(());
    }
    Err(format!("it has {layers} layers, and its configuration {}", diff_ids.len()))
}
