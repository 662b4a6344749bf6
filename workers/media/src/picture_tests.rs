use std::cell::Cell;

use image::{Rgba, RgbaImage};

use super::*;

const NEVER: &dyn Fn() -> bool = &|| false;

/// Left half red, right half blue.
fn two_halves(width: u32, height: u32) -> DynamicImage {
    let color = |x| if x < width / 2 { Rgba([255, 0, 0, 255]) } else { Rgba([0, 0, 255, 255]) };
    DynamicImage::ImageRgba8(RgbaImage::from_fn(width, height, |x, _| color(x)))
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let image = if format == ImageFormat::Jpeg { image.to_rgb8().into() } else { image.clone() };
    image.write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn spec(width: u32, height: u32, fit: Fit) -> Spec {
    Spec { width, height, fit, format: None, quality: QUALITY }
}

fn code(result: Result<Thumb, MediaError>) -> &'static str {
    result.unwrap_err().code()
}

fn pixel(thumb: &Thumb, x: u32, y: u32) -> [u8; 3] {
    let [r, g, b, _] = image::load_from_memory(&thumb.bytes).unwrap().to_rgba8().get_pixel(x, y).0;
    [r, g, b]
}

fn is_red([r, _, b]: [u8; 3]) -> bool {
    r > 200 && b < 60
}

fn is_blue([r, _, b]: [u8; 3]) -> bool {
    b > 200 && r < 60
}

/// A JPEG with an Exif block right behind its first marker, holding the orientation alone.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

/// A PNG whose head declares another size than its data has.
fn declaring(width: u32, height: u32) -> Vec<u8> {
    let mut png = encoded(&two_halves(1, 1), ImageFormat::Png);
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1)))
    })
}

#[test]
fn each_fit_gives_its_size() {
    for (from, target, fit, expected) in [
        ((400, 200), (100, 100), Fit::Contain, (100, 50)),
        ((200, 400), (100, 100), Fit::Contain, (50, 100)),
        ((40, 20), (100, 100), Fit::Contain, (40, 20)),
        ((100, 100), (100, 100), Fit::Contain, (100, 100)),
        ((1000, 1), (10, 10), Fit::Contain, (10, 1)),
        ((333, 500), (320, 240), Fit::Contain, (160, 240)),
        ((400, 200), (100, 100), Fit::Cover, (100, 100)),
        ((40, 20), (100, 60), Fit::Cover, (100, 60)),
        ((400, 200), (30, 90), Fit::Fill, (30, 90)),
        ((4, 2), (30, 90), Fit::Fill, (30, 90)),
    ] {
        let png = encoded(&two_halves(from.0, from.1), ImageFormat::Png);
        let thumb = make_thumbnail(&png, &spec(target.0, target.1, fit), NEVER).unwrap();
        assert_eq!((thumb.width, thumb.height), expected, "{from:?} {fit:?} {target:?}");
        let decoded = image::load_from_memory(&thumb.bytes).unwrap();
        assert_eq!((decoded.width(), decoded.height()), expected);
    }
}

#[test]
fn cover_cuts_both_sides_alike() {
    let png = encoded(&two_halves(400, 100), ImageFormat::Png);
    let thumb = make_thumbnail(&png, &spec(100, 100, Fit::Cover), NEVER).unwrap();
    assert!(is_red(pixel(&thumb, 40, 50)) && is_blue(pixel(&thumb, 60, 50)));
}

#[test]
fn every_format_becomes_every_format() {
    let formats = [
        (Format::Jpeg, ImageFormat::Jpeg),
        (Format::Png, ImageFormat::Png),
        (Format::Webp, ImageFormat::WebP),
    ];
    for (source, from) in formats {
        let bytes = encoded(&two_halves(64, 32), from);
        let same = make_thumbnail(&bytes, &spec(32, 32, Fit::Contain), NEVER).unwrap();
        assert_eq!(same.format, source);
        for (format, to) in formats {
            let spec = Spec { format: Some(format), ..spec(32, 32, Fit::Contain) };
            let thumb = make_thumbnail(&bytes, &spec, NEVER).unwrap();
            assert_eq!((thumb.format, image::guess_format(&thumb.bytes).unwrap()), (format, to));
            assert!(is_red(pixel(&thumb, 4, 8)) && is_blue(pixel(&thumb, 27, 8)), "{from:?} {to:?}");
        }
    }
}

#[test]
fn a_picture_is_turned_upright() {
    let jpeg = encoded(&two_halves(64, 32), ImageFormat::Jpeg);
    let thumb = |orientation, target: (u32, u32)| {
        let bytes = with_orientation(&jpeg, orientation);
        make_thumbnail(&bytes, &spec(target.0, target.1, Fit::Contain), NEVER).unwrap()
    };
    // 6: held upright, so what lies left is above.
    let upright = thumb(6, (100, 32));
    assert_eq!((upright.width, upright.height), (16, 32));
    assert!(is_red(pixel(&upright, 8, 4)) && is_blue(pixel(&upright, 8, 27)));
    // 3: upside down.
    let turned = thumb(3, (32, 32));
    assert_eq!((turned.width, turned.height), (32, 16));
    assert!(is_blue(pixel(&turned, 4, 8)) && is_red(pixel(&turned, 27, 8)));
    // An unknown value is no reason to fail, and the mark is not handed on.
    assert_eq!(thumb(77, (32, 32)).width, 32);
    assert!(!upright.bytes.windows(4).any(|four| four == b"Exif"));
}

#[test]
fn all_eight_orientations_keep_the_box() {
    let jpeg = encoded(&two_halves(64, 32), ImageFormat::Jpeg);
    for orientation in 1..=8 {
        let bytes = with_orientation(&jpeg, orientation);
        for fit in [Fit::Cover, Fit::Fill] {
            let thumb = make_thumbnail(&bytes, &spec(20, 10, fit), NEVER).unwrap();
            assert_eq!((thumb.width, thumb.height), (20, 10), "{orientation}");
        }
        let thumb = make_thumbnail(&bytes, &spec(20, 20, Fit::Contain), NEVER).unwrap();
        let expected = if orientation < 5 { (20, 10) } else { (10, 20) };
        assert_eq!((thumb.width, thumb.height), expected, "{orientation}");
    }
}

#[test]
fn a_declared_bomb_is_refused_before_it_is_decoded() {
    for (width, height) in [(20_000, 20_000), (100_000, 1), (1, 4_000_000), (u32::MAX >> 1, u32::MAX >> 1)] {
        assert_eq!(
            code(make_thumbnail(&declaring(width, height), &spec(9, 9, Fit::Fill), NEVER)),
            "too_large"
        );
    }
}

#[test]
fn a_decoded_size_over_the_limit_is_refused() {
    let mut png = declaring(7_000, 7_000);
    // 49 million pixels of 16-bit RGBA: 392 MB.
    (png[24], png[25]) = (16, 6);
    let sum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(code(make_thumbnail(&png, &spec(9, 9, Fit::Fill), NEVER)), "too_large");
}

#[test]
fn what_is_no_picture_is_refused() {
    let picture = two_halves(200, 100);
    let gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    let mut cases =
        vec![("empty", Vec::new()), ("text", b"just text, no picture".to_vec()), ("gif", gif.to_vec())];
    for (name, format) in
        [("jpeg", ImageFormat::Jpeg), ("png", ImageFormat::Png), ("webp", ImageFormat::WebP)]
    {
        let whole = encoded(&picture, format);
        cases.push((name, whole[..whole.len() / 2].to_vec()));
        cases.push((name, whole[..12].to_vec()));
    }
    for (name, bytes) in cases {
        assert_eq!(code(make_thumbnail(&bytes, &spec(9, 9, Fit::Fill), NEVER)), "bad_picture", "{name}");
    }
}

#[test]
fn numbers_are_checked() {
    let png = encoded(&two_halves(4, 4), ImageFormat::Png);
    let good = spec(8, 8, Fit::Contain);
    for wrong in [
        Spec { width: 0, ..good },
        Spec { height: 0, ..good },
        Spec { width: 8193, ..good },
        Spec { height: u32::MAX, ..good },
        Spec { width: 8192, height: 8192, ..good },
        Spec { quality: 0, ..good },
        Spec { quality: 101, ..good },
    ] {
        assert_eq!(code(make_thumbnail(&png, &wrong, NEVER)), "bad_args", "{wrong:?}");
    }
    make_thumbnail(&png, &Spec { width: 8192, height: 1, quality: 1, ..good }, NEVER).unwrap();
}

#[test]
fn quality_counts_for_jpeg() {
    let noisy = RgbaImage::from_fn(64, 64, |x, y| {
        let noise = u8::try_from((x * 7919 + y * 104_729) % 251).unwrap();
        Rgba([noise, noise.wrapping_mul(31), noise.wrapping_mul(57), 255])
    });
    let png = encoded(&noisy.into(), ImageFormat::Png);
    let length = |quality| {
        let spec = Spec { format: Some(Format::Jpeg), quality, ..spec(64, 64, Fit::Contain) };
        make_thumbnail(&png, &spec, NEVER).unwrap().bytes.len()
    };
    assert!(length(20) < length(95));
}

#[test]
fn transparency_becomes_white_in_jpeg_and_stays_in_png() {
    let glass = DynamicImage::ImageRgba8(RgbaImage::from_pixel(16, 16, Rgba([0, 0, 0, 0])));
    let png = encoded(&glass, ImageFormat::Png);
    let jpeg = Spec { format: Some(Format::Jpeg), ..spec(8, 8, Fit::Fill) };
    assert!(pixel(&make_thumbnail(&png, &jpeg, NEVER).unwrap(), 4, 4).iter().all(|channel| *channel > 250));
    let same = make_thumbnail(&png, &spec(8, 8, Fit::Fill), NEVER).unwrap();
    assert_eq!(image::load_from_memory(&same.bytes).unwrap().to_rgba8().get_pixel(4, 4).0[3], 0);
}

#[test]
fn sixteen_bits_and_grey_are_no_trouble() {
    for image in [
        DynamicImage::new_rgba16(40, 20),
        DynamicImage::new_luma16(40, 20),
        DynamicImage::new_luma8(40, 20),
        DynamicImage::new_luma_a8(40, 20),
    ] {
        let png = encoded(&image, ImageFormat::Png);
        for format in [Format::Jpeg, Format::Png, Format::Webp] {
            let spec = Spec { format: Some(format), ..spec(20, 20, Fit::Contain) };
            assert_eq!(make_thumbnail(&png, &spec, NEVER).unwrap().height, 10);
        }
    }
}

#[test]
fn a_colour_profile_is_carried_over_if_it_fits() {
    let profile = |space: &[u8; 4], length: usize| {
        let mut profile = vec![0; length];
        profile[16..20].copy_from_slice(space);
        profile
    };
    for (given, kept) in [
        (profile(b"RGB ", 500), true),
        (profile(b"GRAY", 500), false),
        (profile(b"RGB ", PROFILE_MAX + 1), false),
    ] {
        let mut png = Vec::new();
        write(&two_halves(32, 32), PngEncoder::new(&mut png), Some(given.clone())).unwrap();
        for format in [Format::Jpeg, Format::Png, Format::Webp] {
            let spec = Spec { format: Some(format), ..spec(16, 16, Fit::Contain) };
            let thumb = make_thumbnail(&png, &spec, NEVER).unwrap();
            let reader = ImageReader::new(Cursor::new(&thumb.bytes)).with_guessed_format().unwrap();
            let found = reader.into_decoder().unwrap().icc_profile().unwrap();
            assert_eq!(found, kept.then_some(given.clone()), "{format:?}");
        }
    }
}

#[test]
fn it_stops_between_steps() {
    let png = encoded(&two_halves(40, 20), ImageFormat::Png);
    for after in 0..4 {
        let asked = Cell::new(0);
        let stop = || asked.replace(asked.get() + 1) >= after;
        assert_eq!(code(make_thumbnail(&png, &spec(9, 9, Fit::Fill), &stop)), "stopped");
        assert_eq!(asked.get(), after + 1);
    }
}

#[test]
fn the_same_source_gives_the_same_bytes() {
    let png = encoded(&two_halves(64, 32), ImageFormat::Png);
    for format in [Format::Jpeg, Format::Png, Format::Webp] {
        let spec = Spec { format: Some(format), ..spec(20, 20, Fit::Cover) };
        assert_eq!(make_thumbnail(&png, &spec, NEVER).unwrap(), make_thumbnail(&png, &spec, NEVER).unwrap());
    }
}
