//! The C library's heap.

/// Gives the pages that are free in the heap back to the kernel, also those below what is in use: the C library does that by itself only at
/// the heap's end. Takes some milliseconds for a heap of some hundred MiB. Does nothing with another C library.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks what it touches.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Anonymous memory of this process, in bytes.
    #[cfg(target_env = "gnu")]
    fn resident() -> u64 {
        let text = std::fs::read_to_string("/proc/self/status").expect("proc");
        let line = text.lines().find(|line| line.starts_with("RssAnon:")).expect("a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_free_between_what_is_used_goes_back() {
        // Small pieces, so that they are on the heap, each tenth of which stays.
        let mut pieces: Vec<Vec<u8>> = (0..8_192).map(|_| vec![1; 8 << 10]).collect();
        let mut number = 0;
        pieces.retain(|_| {
            number += 1;
            number % 10 == 0
        });
        let before = resident();
        trim_heap();
        let after = resident();
        assert!(after + (24 << 20) < before, "{before} before, {after} after");
        assert!(pieces.iter().flatten().all(|byte| *byte == 1));
    }
}
