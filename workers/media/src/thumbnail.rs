//! `image.thumbnail`: makes a small picture of a large one.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hopline::{Context, Job, JobResult, Schemas, schemars::JsonSchema};
use serde::{Deserialize, Serialize};

use crate::{
    error::MediaError,
    media::{Media, SOURCE_MAX, Source},
    picture::{self, Fit, Format, Spec, Thumb},
};

/// The arguments. An unknown member is an error, so that a misspelt one is not silently ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(deny_unknown_fields)]
pub struct Thumbnail {
    /// The picture: `{"base64": "…"}` or `{"path": "relative/to/the/picture/folder"}`.
    pub image: ImageArg,
    /// Width of the box to fit into, 1 to 8192 pixels.
    #[schemars(range(min = 1, max = 8192))]
    pub width: u32,
    /// Height of the box, 1 to 8192 pixels; width × height at most 50 million.
    #[schemars(range(min = 1, max = 8192))]
    pub height: u32,
    /// How to fit. Default `contain`.
    #[serde(default)]
    pub fit: Fit,
    /// Format of the result. Default: the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// JPEG quality, 1 to 100; ignored for other formats. Default 85.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub quality: Option<u8>,
    /// Save the result under this path, relative to the picture folder, instead of returning its bytes. Its
    /// extension must suit the format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_as: Option<String>,
}

/// Where the picture is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(rename_all = "lowercase")]
pub enum ImageArg {
    /// In the job itself.
    Base64(String),
    /// In the picture folder.
    Path(String),
}

/// The output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
pub struct Picture {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The format.
    pub format: Format,
    /// The picture's length in bytes.
    pub bytes: usize,
    /// The picture itself, unless it was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// Where it was saved: `save_as`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl Job for Thumbnail {
    const KIND: &'static str = "image.thumbnail";
    const QUEUE: &'static str = "media";
    type Output = Picture;

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

/// Runs one `image.thumbnail` on the CPU pool.
///
/// # Errors
/// Fatal for what the job or its picture got wrong, to be retried for what may pass; codes: [`MediaError::code`].
pub async fn thumbnail(job: Thumbnail, cx: Context<Media>) -> JobResult<Picture> {
    let media = cx.state().clone();
    cx.cpu(move |stop| job.run(&media, &|| stop.is_stopped()).map_err(MediaError::into_job_error)).await
}

impl Thumbnail {
    /// Does the whole job: reads the source, makes the thumbnail, saves or returns it. Blocks for as long as that
    /// takes; `stop` is asked between the steps.
    ///
    /// # Errors
    /// [`MediaError`]; [`MediaError::into_job_error`] says what it means for the job.
    pub fn run(&self, media: &Media, stop: &dyn Fn() -> bool) -> Result<Picture, MediaError> {
        let spec = self.spec();
        spec.check()?;
        match &self.image {
            ImageArg::Base64(text) => {
                let thumb = picture::make_thumbnail(&inline(text)?, &spec, stop)?;
                self.deliver(thumb, media, None)
            }
            ImageArg::Path(path) => {
                let source = media.read(path)?;
                let thumb = picture::make_thumbnail(&source.bytes, &spec, stop)?;
                self.deliver(thumb, media, Some(&source))
            }
        }
    }

    fn spec(&self) -> Spec {
        Spec {
            width: self.width,
            height: self.height,
            fit: self.fit,
            format: self.format,
            quality: self.quality.unwrap_or(picture::QUALITY),
        }
    }

    fn deliver(&self, thumb: Thumb, media: &Media, source: Option<&Source>) -> Result<Picture, MediaError> {
        let Thumb { width, height, format, bytes } = thumb;
        let length = bytes.len();
        let (base64, path) = match &self.save_as {
            None => (Some(BASE64.encode(bytes)), None),
            Some(path) => {
                check_extension(path, format)?;
                media.save(path, &bytes, source)?;
                (None, Some(path.clone()))
            }
        };
        Ok(Picture { width, height, format, bytes: length, base64, path })
    }
}

fn inline(text: &str) -> Result<Vec<u8>, MediaError> {
    if text.len() as u64 / 4 * 3 > SOURCE_MAX {
        return Err(MediaError::TooLarge(format!("the picture has more than {SOURCE_MAX} bytes")));
    }
    BASE64.decode(text).map_err(|error| MediaError::BadArgs(format!("image.base64: {error}")))
}

/// A job writes pictures and nothing that somebody else would take for a script or a setting.
fn check_extension(path: &str, format: Format) -> Result<(), MediaError> {
    let extension = std::path::Path::new(path).extension().and_then(|extension| extension.to_str());
    match extension.is_some_and(|extension| format.has_extension(extension)) {
        true => Ok(()),
        false => Err(MediaError::BadArgs(format!("save_as {path:?} has no extension that suits {format:?}"))),
    }
}

#[cfg(test)]
#[path = "thumbnail_tests.rs"]
mod tests;
