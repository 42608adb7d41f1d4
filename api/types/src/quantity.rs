//! Kubernetes quantities: `500m`, `1.5`, `64Mi`, `1e3`, `2G`.

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a quantity such as 500m, 2, 1.5, 64Mi or 10G")]
pub struct BadQuantity;

/// The most of something that containers take beside each other (KEP-753), told of them in the order of their start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    // Wide enough for any number of them.
    now: u128,
    peak: u128,
}

impl Beside {
    /// One more: it stays, as a sidecar or a container of the pod itself does, or runs to its end before the next begins.
    pub fn add(&mut self, amount: u64, stays: bool) {
        let with = self.now + u128::from(amount);
        self.peak = self.peak.max(with);
        if stays {
            self.now = with;
        }
    }

    /// The most; `None` where that is more than can be said.
    pub fn peak(self) -> Option<u64> {
        self.peak.try_into().ok()
    }
}

/// A quantity in thousandths of its unit; what is smaller is rounded up, as Kubernetes does.
pub fn millis(text: &str) -> Result<i128, BadQuantity> {
    let split = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    // Powers are of ten (thousandths first) or of two.
    let (ten, two) = match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => (exponent(suffix)?, 0),
    };
    let (negative, digits) = match number.as_bytes().first() {
        Some(b'-') => (true, &number[1..]),
        Some(b'+') => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // 18 and 9 digits hold every quantity that fits the 64 bits of Kubernetes.
    if whole.len() + fraction.len() == 0
        || !all_digits(whole)
        || !all_digits(fraction)
        || whole.len() > 18
        || fraction.len() > 9
    {
        return Err(BadQuantity);
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().map_err(|_| BadQuantity)?;
    let power = ten + 3 - i32::try_from(fraction.len()).map_err(|_| BadQuantity)?;
    let mut value = mantissa.checked_mul(1_i128 << two).ok_or(BadQuantity)?;
    if power >= 0 {
        value = value.checked_mul(10_i128.checked_pow(power.unsigned_abs()).ok_or(BadQuantity)?).ok_or(BadQuantity)?;
    } else {
        let divisor = 10_i128.checked_pow(power.unsigned_abs()).ok_or(BadQuantity)?;
        value = (value + divisor - 1) / divisor;
    }
    Ok(if negative { -value } else { value })
}

fn exponent(suffix: &str) -> Result<i32, BadQuantity> {
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(BadQuantity)?;
    let power: i32 = digits.parse().map_err(|_| BadQuantity)?;
    if (-18..=18).contains(&power) { Ok(power) } else { Err(BadQuantity) }
}

/// A CPU quantity in thousandths of a core.
pub fn cpu_millis(text: &str) -> Result<u64, BadQuantity> {
    u64::try_from(millis(text)?).map_err(|_| BadQuantity)
}

/// A quantity of bytes (or pieces); parts of one are rounded up.
pub fn bytes(text: &str) -> Result<u64, BadQuantity> {
    let value = millis(text)?;
    u64::try_from((value + 999).div_euclid(1000)).map_err(|_| BadQuantity)
}

/// Bytes as people read them in tables and messages: `1536Mi`, `2Gi`, `300`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    for (unit, size) in UNITS {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    bytes.to_string()
}

/// Thousandths of a core as Kubernetes writes them: `250m`, `2`.
pub fn format_cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_have_the_values_of_kubernetes() {
        for (text, expected) in
            [("500m", 500), ("2", 2000), ("1.5", 1500), ("0.0001", 1), ("1e3", 1_000_000), ("100n", 1)]
        {
            assert_eq!(cpu_millis(text), Ok(expected), "{text}");
        }
        for (text, expected) in [("64Mi", 64 << 20), ("1G", 1_000_000_000), ("1.5Gi", 3 << 29), ("100m", 1), ("0", 0)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for bad in ["", "m", "1x", "1.2.3", "-", "1e99", "--1", "1 Mi", "Mi", "1MI"] {
            assert_eq!(millis(bad), Err(BadQuantity), "{bad}");
        }
        assert_eq!(bytes("-1"), Err(BadQuantity));
        assert_eq!(format_bytes(64 << 20), "64Mi");
        assert_eq!(format_cpu(1500), "1500m");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,40}") {
            let _ = millis(&text);
            let _ = bytes(&text);
        }

        #[test]
        fn formatting_is_read_back(n in 0_u64..(1 << 50)) {
            prop_assert_eq!(bytes(&format_bytes(n)), Ok(n));
            prop_assert_eq!(cpu_millis(&format_cpu(n)), Ok(n));
        }
    }
}
