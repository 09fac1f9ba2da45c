//! The words of the command line that carry a unit.

use std::num::NonZeroU64;
use std::time::Duration;

use super::random::MILLION;

/// Longest time that may be asked for.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Highest rate that may be asked for, bits per second.
pub const FASTEST: u64 = 1_000_000_000_000;

/// A time with its unit: `20ms`, `1.5s`, `300us`; `0` needs none.
///
/// # Errors
/// What it should have been.
pub fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: a number and s, ms or us is, such as 20ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let seconds = scaled(text, &units).ok_or_else(wrong)?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if time > LONGEST { Err(format!("'{text}' is more than {} s", LONGEST.as_secs())) } else { Ok(time) }
}

/// Bits per second: `200mbit`, `1.5gbit`, `64kbit`.
///
/// # Errors
/// What it should have been.
pub fn rate(text: &str) -> Result<NonZeroU64, String> {
    let units = [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)];
    let rate = scaled(text, &units).filter(|rate| *rate <= FASTEST as f64);
    rate.and_then(|rate| NonZeroU64::new(rate as u64)).ok_or_else(|| {
        format!("'{text}' is no rate: a number and kbit, mbit or gbit is, 1000gbit at most, such as 200mbit")
    })
}

/// A share in parts of a million: `1%`, `0.25%`.
///
/// # Errors
/// What it should have been.
pub fn share(text: &str) -> Result<u32, String> {
    let percent = scaled(text, &[("%", 1.0)]).filter(|percent| *percent <= 100.0);
    let parts = percent.map(|percent| (percent / 100.0 * f64::from(MILLION)).round() as u32);
    parts.ok_or_else(|| format!("'{text}' is no share: a number up to 100 and % is, such as 1%"))
}

/// A number that is not negative and is followed by one of these units, times the unit's worth.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, worth) =
        units.iter().find_map(|(unit, worth)| text.strip_suffix(unit).map(|number| (number, worth)))?;
    // `f64::from_str` takes signs, `inf` and `1e3`, too.
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    plain.then(|| number.parse::<f64>().ok()).flatten().map(|number| number * worth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_units() {
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("300us"), Ok(Duration::from_micros(300)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        assert_eq!(rate("200mbit").map(NonZeroU64::get), Ok(200_000_000));
        assert_eq!(rate("0.5gbit").map(NonZeroU64::get), Ok(500_000_000));
        assert_eq!(rate("64kbit").map(NonZeroU64::get), Ok(64_000));
        assert_eq!((share("1%"), share("0.25%"), share("100%")), (Ok(10_000), Ok(2_500), Ok(MILLION)));
    }

    #[test]
    fn words_without() {
        for bad in
            ["", "20", "ms", "-1ms", "1e3s", "infs", "1..2s", "20 ms", "20m", "90000s", "99999999999999s"]
        {
            assert!(time(bad).unwrap_err().contains(bad), "{bad}");
        }
        for bad in ["", "200", "0mbit", "1001gbit", "-5mbit", "NaNmbit", "200Mbit"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        for bad in ["1", "101%", "%", "-1%", "0.01"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
