//! Mistyped verbs.

/// Most edits between a verb and a word that is taken for it; a third of a short verb's letters.
const CLOSE: usize = 2;

/// The verb that `word` was probably meant to be. Only words of letters are compared: `wg0` and `shop1` are names.
pub(super) fn verb_close_to<'a>(word: &str, verbs: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if !word.chars().all(|c| c.is_ascii_alphabetic() || c == '-') {
        return None;
    }
    let word = word.to_ascii_lowercase();
    verbs
        .map(|verb| (distance(word.as_bytes(), verb.as_bytes()), verb))
        .filter(|(edits, verb)| *edits <= CLOSE.min(verb.len() / 3))
        .min()
        .map(|(_, verb)| verb)
}

/// Edits from `a` to `b`: insert, delete, replace, swap neighbours (optimal string alignment).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let width = b.len() + 1;
    let mut above: Vec<usize> = (0..width).collect();
    let mut two_above = above.clone();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |line: &[usize], column: usize| line.get(column).copied().unwrap_or(usize::MAX / 2);
            let replace = at(&above, j) + usize::from(x != y);
            let mut best = replace.min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&two_above, j - 1) + 1);
            }
            row.push(best);
        }
        two_above = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("show", "show", 0),
            ("shwo", "show", 1),
            ("hsow", "show", 1),
            ("sho", "show", 1),
            ("shows", "show", 1),
            ("genkye", "genkey", 1),
            ("genpsk", "genkey", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), edits, "{a} {b}");
            assert_eq!(distance(b.as_bytes(), a.as_bytes()), edits, "{b} {a}");
        }
    }

    #[test]
    fn typos_are_verbs_and_names_are_not() {
        let verbs = ["show", "top", "genkey", "pubkey", "genpsk", "help"];
        let close = |word| verb_close_to(word, verbs.into_iter());
        assert_eq!(close("shwo"), Some("show"));
        assert_eq!(close("Show"), Some("show"));
        assert_eq!(close("gen-key"), Some("genkey"));
        assert_eq!(close("pubkye"), Some("pubkey"));
        for name in ["wg0", "tun", "tun0", "home", "shop1", "show0", "vpn", "office", "wg-quick"] {
            assert_eq!(close(name), None, "{name}");
        }
    }
}
