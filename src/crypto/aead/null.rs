//! What stands in the place of the cipher in a build with the feature `null-cipher`: texts stay as they are, and a
//! fixed mark is the tag. It shows what the rest of a packet's way costs. Whoever encrypts drops such packets, and is
//! dropped.

use subtle::{Choice, ConstantTimeEq as _};

use super::{Pieces, Span, TAG_LEN, take};

const MARK: [u8; TAG_LEN] = *b"nothing sealed!!";

/// Puts the mark behind each text. False if a span does not fit.
pub(super) fn mark_run(pieces: &mut Pieces<'_>, spans: &[Span]) -> bool {
    spans.iter().all(|span| take(pieces, span).map(|(_, place)| place.copy_from_slice(&MARK)).is_some())
}

/// True of a tag that [`mark_run`] wrote.
pub(super) fn is_marked(tag: &[u8; TAG_LEN]) -> Choice {
    tag.ct_eq(&MARK)
}

#[cfg(test)]
mod tests {
    use super::super::{ENCRYPTS, Key, open};
    use super::*;
    use crate::types::Secret;

    /// Two texts keep their bytes and get the mark, which this build takes for what it is: a forgery.
    #[test]
    fn marks_and_is_refused_by_who_encrypts() {
        let mut buffer = [7; 64];
        let spans = [Span { start: 2, len: 10 }, Span { start: 28, len: 20 }];
        assert!(mark_run(&mut Pieces::of(&mut buffer), &spans));
        for span in spans {
            let end = span.start + span.len;
            assert_eq!(buffer[span.start..end], vec![7; span.len]);
            assert_eq!(buffer[end..end + TAG_LEN], MARK);
            assert!(
                ENCRYPTS
                    && open(&Key::new(&Secret([1; 32])), 0, &mut buffer[span.start..end + TAG_LEN]).is_none()
            );
        }
        assert!(!mark_run(&mut Pieces::of(&mut buffer), &[Span { start: 50, len: 0 }]), "no room for a tag");
        assert!(bool::from(is_marked(&MARK)) && !bool::from(is_marked(&[0; TAG_LEN])));
    }
}
