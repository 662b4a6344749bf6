//! Whether a JPEG is all there. Decoders show a truncated one as far as it goes and say nothing.

const START_OF_SCAN: u8 = 0xda;
const END: u8 = 0xd9;

/// Whether the marker that ends the picture follows its data. Walks the segments, because the small picture
/// inside a photo's Exif block has an end marker of its own.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        let Some(marker) = next_marker(bytes, &mut at) else { return false };
        match marker {
            END => return true,
            // Stand alone: no length follows.
            0x01 | 0xd0..=0xd8 => {}
            _ => {
                let Some([high, low]) = bytes.get(at..at + 2) else { return false };
                at += usize::from(u16::from_be_bytes([*high, *low]));
                if marker == START_OF_SCAN {
                    skip_scan(bytes, &mut at);
                }
            }
        }
    }
}

/// The marker at or after `at`, fill bytes skipped; leaves `at` behind it.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    let start = bytes.get(*at..)?.iter().position(|byte| *byte == 0xff)?;
    let fill = bytes[*at + start..].iter().position(|byte| *byte != 0xff)?;
    *at += start + fill + 1;
    bytes.get(*at - 1).copied()
}

/// Moves `at` to the first marker behind a scan's data, where `ff 00` is a data byte and `d0` to `d7` restart it.
fn skip_scan(bytes: &[u8], at: &mut usize) {
    let rest = bytes.get(*at..).unwrap_or_default();
    let marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xd0..=0xd7);
    *at += rest.windows(2).position(marker).unwrap_or(rest.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = include_bytes!("../pictures/sample.jpg");

    #[test]
    fn a_whole_one_is_whole_also_with_something_behind_it() {
        assert!(is_whole(SAMPLE));
        assert!(is_whole(&[SAMPLE, b"trailing"].concat()));
    }

    #[test]
    fn a_part_never_is() {
        for length in (0..SAMPLE.len() - 1).step_by(97).chain([SAMPLE.len() - 2, SAMPLE.len() - 1]) {
            assert!(!is_whole(&SAMPLE[..length]), "{length}");
        }
    }

    #[test]
    fn an_end_within_a_segment_does_not_count() {
        let exif = [0xff, 0xe1, 0x00, 0x06, 0xff, END, 0xff, END];
        let photo = [&SAMPLE[..2], &exif, &SAMPLE[2..]].concat();
        assert!(is_whole(&photo));
        assert!(!is_whole(&photo[..photo.len() / 2]));
    }

    #[test]
    fn fill_bytes_and_restarts_are_skipped() {
        let jpeg = b"\xff\xd8\xff\xff\xff\xda\x00\x02data\xff\x00\xff\xd3more\xff\xff\xd9";
        assert!(is_whole(jpeg));
        assert!(!is_whole(&jpeg[..jpeg.len() - 1]));
    }
}
