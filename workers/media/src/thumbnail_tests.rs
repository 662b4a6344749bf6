use serde_json::{Value, json};

use super::*;

const NEVER: &dyn Fn() -> bool = &|| false;
const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pictures");

fn samples() -> Media {
    Media::open(PICTURES).unwrap()
}

fn parse(args: Value) -> Result<Thumbnail, serde_json::Error> {
    serde_json::from_value(args)
}

fn run(args: Value, media: &Media) -> Result<Picture, MediaError> {
    parse(args).unwrap().run(media, NEVER)
}

fn code(args: Value) -> &'static str {
    run(args, &samples()).unwrap_err().code()
}

fn size(bytes: &[u8]) -> (u32, u32) {
    let image = image::load_from_memory(bytes).unwrap();
    (image.width(), image.height())
}

#[test]
fn the_samples_become_thumbnails() {
    for (path, format) in [("sample.jpg", "jpeg"), ("sample.png", "png")] {
        let picture = run(json!({"image": {"path": path}, "width": 120, "height": 120}), &samples()).unwrap();
        let output = serde_json::to_value(&picture).unwrap();
        let bytes = BASE64.decode(output["base64"].as_str().unwrap()).unwrap();
        assert_eq!(output["format"], format);
        assert_eq!(output["bytes"], bytes.len());
        assert_eq!(size(&bytes), (picture.width, picture.height));
        assert_eq!(picture.width.max(picture.height), 120);
        assert_eq!(output.get("path"), None);
    }
}

#[test]
fn a_picture_may_come_in_the_job() {
    let bytes = std::fs::read(format!("{PICTURES}/sample.jpg")).unwrap();
    let args = json!({"image": {"base64": BASE64.encode(bytes)}, "width": 50, "height": 50, "fit": "cover", "format": "webp"});
    let picture = run(args, &samples()).unwrap();
    assert_eq!(picture.format, Format::Webp);
    assert_eq!(size(&BASE64.decode(picture.base64.unwrap()).unwrap()), (50, 50));
}

#[test]
fn a_saved_result_is_named_and_not_returned() {
    let folder = std::env::temp_dir().join(format!("media-save-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(format!("{PICTURES}/sample.png"), folder.join("s.png")).unwrap();
    let media = Media::open(&folder).unwrap();

    let args = json!({"image": {"path": "s.png"}, "width": 64, "height": 64, "format": "jpeg", "save_as": "t/s.jpg"});
    let first = run(args.clone(), &media).unwrap();
    let saved = std::fs::read(folder.join("t/s.jpg")).unwrap();
    let again = run(args, &media).unwrap();
    let itself = json!({"image": {"path": "s.png"}, "width": 64, "height": 64, "save_as": "s.png"});
    let refused = run(itself, &media).unwrap_err();
    std::fs::remove_dir_all(&folder).unwrap();

    assert_eq!(again, first, "a repeated attempt ends the same");
    assert_eq!((first.path.as_deref(), first.base64, first.bytes), (Some("t/s.jpg"), None, saved.len()));
    assert_eq!(size(&saved), (first.width, first.height));
    assert_eq!(refused.code(), "bad_args");
}

#[test]
fn each_mistake_has_its_code() {
    let sample = json!({"path": "sample.png"});
    for (args, expected) in [
        (json!({"image": {"path": "nope.jpg"}, "width": 9, "height": 9}), "picture_missing"),
        (json!({"image": {"path": "../Cargo.toml"}, "width": 9, "height": 9}), "outside_root"),
        (json!({"image": {"path": "/etc/passwd"}, "width": 9, "height": 9}), "outside_root"),
        (json!({"image": {"path": "LICENSE"}, "width": 9, "height": 9}), "bad_picture"),
        (json!({"image": {"base64": "aGVsbG8="}, "width": 9, "height": 9}), "bad_picture"),
        (json!({"image": {"base64": "***"}, "width": 9, "height": 9}), "bad_args"),
        (json!({"image": sample, "width": 0, "height": 9}), "bad_args"),
        (json!({"image": sample, "width": 9, "height": 9, "quality": 0}), "bad_args"),
        (json!({"image": sample, "width": 9, "height": 9, "save_as": "t.php"}), "bad_args"),
        (json!({"image": sample, "width": 9, "height": 9, "save_as": "t"}), "bad_args"),
        (json!({"image": sample, "width": 9, "height": 9, "save_as": "../t.png"}), "outside_root"),
    ] {
        assert_eq!(code(args.clone()), expected, "{args}");
    }
}

#[test]
fn args_are_read_strictly() {
    let good = json!({"image": {"path": "a"}, "width": 1, "height": 1});
    let thumbnail = parse(good.clone()).unwrap();
    assert_eq!((thumbnail.fit, thumbnail.format, thumbnail.save_as), (Fit::Contain, None, None));
    for (name, value) in [
        ("widht", json!(3)),
        ("width", json!(-1)),
        ("width", json!(1.5)),
        ("width", json!("9")),
        ("fit", json!("stretch")),
        ("format", json!("gif")),
        ("quality", json!(256)),
        ("image", json!({})),
        ("image", json!("a.jpg")),
        ("image", json!({"url": "http://example.com/a.jpg"})),
        ("image", json!({"path": "a", "base64": "b"})),
    ] {
        let mut wrong = good.clone();
        wrong[name] = value;
        assert!(parse(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn args_go_over_the_wire_and_back() {
    let args = json!({"image": {"base64": "AA=="}, "width": 1, "height": 2, "fit": "fill", "format": "webp", "quality": 3, "save_as": "x"});
    assert_eq!(serde_json::to_value(parse(args.clone()).unwrap()).unwrap(), args);
}

#[tokio::test]
async fn the_handler_answers_with_the_output_or_says_what_an_error_means() {
    let run = |args| hopline::testing::run(thumbnail, parse(args).unwrap()).state(samples());

    let tested = run(json!({"image": {"path": "sample.jpg"}, "width": 32, "height": 32})).await;
    assert_eq!(tested.output::<Picture>().unwrap().width, 32);

    let tested = run(json!({"image": {"path": "nope.jpg"}, "width": 32, "height": 32})).await;
    assert!(tested.is_dead());
    let hopline::worker::Outcome::Failed(error) = tested.outcome else { panic!("{:?}", tested.outcome) };
    assert_eq!(error.code(), "picture_missing");
}
