//! Bytes to thumbnail: decode within limits, scale, turn upright, encode. Pure: no files, no clock, no threads.
//!
//! Formats in and out: JPEG, PNG, WebP (written without loss). Of an animated picture the first frame is taken.
//! A colour profile of an RGB picture is carried over; other metadata (camera, place, time) is left behind.

use std::io::Cursor;

use fast_image_resize::{ResizeOptions, Resizer};
use hopline::schemars::JsonSchema;
use image::{
    DynamicImage, ImageDecoder, ImageEncoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
    metadata::Orientation,
};
use serde::{Deserialize, Serialize};

use crate::{error::MediaError, jpeg};

/// Most pixels of a source, and of a result: 50 million.
pub const PIXELS_MAX: u64 = 50_000_000;
/// Longest side of a source, in pixels.
pub const SOURCE_SIDE_MAX: u32 = 32_768;
/// Longest side of a result, in pixels.
pub const SIDE_MAX: u32 = 8192;
/// Most bytes of a decoded source: 256 MiB. 50 million pixels of 8-bit RGBA fit, of 16-bit RGBA do not.
pub const DECODED_MAX: u64 = 256 << 20;
/// JPEG quality where none is given.
pub const QUALITY: u8 = 85;
/// A longer colour profile is left out: real ones have a few kilobytes.
const PROFILE_MAX: usize = 64 << 10;

/// How a picture is fitted into the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(crate = "hopline::schemars")]
pub enum Fit {
    /// All of the picture, its proportions kept, within the box; never enlarged.
    #[default]
    Contain,
    /// Exactly the box, proportions kept, what is too much cut off on both sides; enlarged where needed.
    Cover,
    /// Exactly the box, proportions lost; enlarged where needed.
    Fill,
}

/// A picture format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(crate = "hopline::schemars")]
pub enum Format {
    /// JPEG; transparency becomes white.
    Jpeg,
    /// PNG, 8 bits a channel.
    Png,
    /// WebP, without loss.
    Webp,
}

impl Format {
    /// Whether a file of this format may have this extension.
    #[must_use]
    pub fn has_extension(self, extension: &str) -> bool {
        let extensions: &[&str] = match self {
            Self::Jpeg => &["jpg", "jpeg"],
            Self::Png => &["png"],
            Self::Webp => &["webp"],
        };
        extensions.iter().any(|known| known.eq_ignore_ascii_case(extension))
    }
}

/// What to make of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// The box's width, 1 to [`SIDE_MAX`] pixels.
    pub width: u32,
    /// The box's height, 1 to [`SIDE_MAX`] pixels.
    pub height: u32,
    /// How to fit the picture into the box.
    pub fit: Fit,
    /// The result's format; `None`: the source's.
    pub format: Option<Format>,
    /// JPEG quality, 1 to 100; other formats ignore it.
    pub quality: u8,
}

impl Spec {
    /// Checks each value.
    ///
    /// # Errors
    /// `BadArgs`, saying what is allowed.
    pub fn check(&self) -> Result<(), MediaError> {
        for (name, side) in [("width", self.width), ("height", self.height)] {
            if !(1..=SIDE_MAX).contains(&side) {
                return Err(MediaError::BadArgs(format!("{name} must be 1 to {SIDE_MAX}, not {side}")));
            }
        }
        if u64::from(self.width) * u64::from(self.height) > PIXELS_MAX {
            return Err(MediaError::BadArgs(format!("width × height must be at most {PIXELS_MAX}")));
        }
        if !(1..=100).contains(&self.quality) {
            return Err(MediaError::BadArgs(format!("quality must be 1 to 100, not {}", self.quality)));
        }
        Ok(())
    }
}

/// A finished thumbnail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumb {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The format of `bytes`.
    pub format: Format,
    /// The encoded picture.
    pub bytes: Vec<u8>,
}

/// Makes a thumbnail. `stop` is asked between the steps; each of them is one uninterrupted stretch of work.
///
/// # Errors
/// `BadArgs`, `BadPicture`, `TooLarge`, or `Stopped`.
pub fn make_thumbnail(bytes: &[u8], spec: &Spec, stop: &dyn Fn() -> bool) -> Result<Thumb, MediaError> {
    let go_on = || if stop() { Err(MediaError::Stopped) } else { Ok(()) };
    spec.check()?;
    go_on()?;
    let source = decode(bytes)?;
    go_on()?;
    let format = spec.format.unwrap_or(source.format);
    let mut image = scale(&source, spec)?;
    go_on()?;
    image.apply_orientation(source.orientation);
    let encoded = encode(&image, format, spec.quality, source.profile)?;
    go_on()?;
    Ok(Thumb { width: image.width(), height: image.height(), format, bytes: encoded })
}

/// A decoded source, not yet upright.
struct Decoded {
    image: DynamicImage,
    orientation: Orientation,
    format: Format,
    profile: Option<Vec<u8>>,
}

/// Reads the head, checks what it declares against the limits, and only then decodes.
fn decode(bytes: &[u8]) -> Result<Decoded, MediaError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(bad)?;
    let format = match reader.format() {
        Some(ImageFormat::Jpeg) => Format::Jpeg,
        Some(ImageFormat::Png) => Format::Png,
        Some(ImageFormat::WebP) => Format::Webp,
        _ => return Err(bad("neither JPEG, PNG nor WebP")),
    };
    // The decoder fills the missing part with grey.
    if format == Format::Jpeg && !jpeg::is_whole(bytes) {
        return Err(bad("the JPEG ends before its end mark"));
    }
    reader.limits(limits());
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(MediaError::TooLarge(format!("{width} × {height} pixels are more than {PIXELS_MAX}")));
    }
    if decoder.total_bytes() > DECODED_MAX {
        return Err(MediaError::TooLarge(format!("decoded it takes more than {DECODED_MAX} bytes")));
    }
    // Neither makes a picture unreadable: without them it is shown as it lies, in plain sRGB.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let profile = decoder.icc_profile().ok().flatten().filter(|profile| is_rgb_profile(profile));
    let image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    Ok(Decoded { image: eight_bits(image), orientation, format, profile })
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(SOURCE_SIDE_MAX);
    limits.max_image_height = Some(SOURCE_SIDE_MAX);
    limits.max_alloc = Some(DECODED_MAX);
    limits
}

/// The result is RGB whatever the source was; a profile for grey or CMYK would spoil its colours.
fn is_rgb_profile(profile: &[u8]) -> bool {
    profile.len() <= PROFILE_MAX && profile.get(16..20) == Some(b"RGB ")
}

/// 8 bits a channel, which all three formats can hold.
fn eight_bits(image: DynamicImage) -> DynamicImage {
    match image.color().has_alpha() {
        true => DynamicImage::ImageRgba8(image.into_rgba8()),
        false => DynamicImage::ImageRgb8(image.into_rgb8()),
    }
}

/// Scales before the picture is turned upright, as turning a small one is cheaper; so the box is turned instead.
fn scale(source: &Decoded, spec: &Spec) -> Result<DynamicImage, MediaError> {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let lies = matches!(source.orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
    let target = if lies { (spec.height, spec.width) } else { (spec.width, spec.height) };
    let from = (source.image.width(), source.image.height());
    let (width, height) = if spec.fit == Fit::Contain { contained(from, target) } else { target };

    let options = match spec.fit {
        Fit::Cover => ResizeOptions::new().fit_into_destination(Some((0.5, 0.5))),
        Fit::Contain | Fit::Fill => ResizeOptions::new(),
    };
    let mut scaled = DynamicImage::new(width, height, source.image.color());
    Resizer::new().resize(&source.image, &mut scaled, &options).map_err(bad)?;
    Ok(scaled)
}

/// The largest size within `target` that keeps the proportions of `from` and does not enlarge.
fn contained(from: (u32, u32), target: (u32, u32)) -> (u32, u32) {
    if from.0 <= target.0 && from.1 <= target.1 {
        return from;
    }
    let [w, h, box_w, box_h] = [from.0, from.1, target.0, target.1].map(u64::from);
    let rounded = |product: u64, by: u64| u32::try_from((product + by / 2) / by).unwrap_or(u32::MAX).max(1);
    match w * box_h >= h * box_w {
        true => (target.0, rounded(h * box_w, w).min(target.1)),
        false => (rounded(w * box_h, h).min(target.0), target.1),
    }
}

fn encode(
    image: &DynamicImage,
    format: Format,
    quality: u8,
    profile: Option<Vec<u8>>,
) -> Result<Vec<u8>, MediaError> {
    let mut out = Vec::new();
    match format {
        Format::Jpeg => {
            let opaque = DynamicImage::ImageRgb8(on_white(image));
            write(&opaque, JpegEncoder::new_with_quality(&mut out, quality), profile)
        }
        Format::Png => write(image, PngEncoder::new(&mut out), profile),
        Format::Webp => write(image, WebPEncoder::new_lossless(&mut out), profile),
    }
    .map_err(unreadable)?;
    Ok(out)
}

fn write<E: ImageEncoder>(
    image: &DynamicImage,
    mut encoder: E,
    profile: Option<Vec<u8>>,
) -> Result<(), ImageError> {
    if let Some(profile) = profile {
        encoder.set_icc_profile(profile).map_err(ImageError::Unsupported)?;
    }
    image.write_with_encoder(encoder)
}

/// JPEG has no transparency; dropping the channel would show whatever colour lies under it, mostly black.
fn on_white(image: &DynamicImage) -> RgbImage {
    let DynamicImage::ImageRgba8(rgba) = image else { return image.to_rgb8() };
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [.., alpha] = from.0.map(u32::from);
        for (to, from) in to.0.iter_mut().zip(from.0) {
            let mixed = (u32::from(from) * alpha + 255 * (255 - alpha) + 127) / 255;
            *to = u8::try_from(mixed).unwrap_or(u8::MAX);
        }
    }
    rgb
}

fn unreadable(error: ImageError) -> MediaError {
    match error {
        ImageError::Limits(error) => MediaError::TooLarge(error.to_string()),
        error => bad(error),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
fn bad(why: impl ToString) -> MediaError {
    MediaError::BadPicture(why.to_string())
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
