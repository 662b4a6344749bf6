use cap_tempfile::{TempDir, tempdir};

use super::*;

/// A root `root` and, beside it, a file that no job may reach.
fn place() -> (TempDir, Media) {
    let place = tempdir(ambient_authority()).unwrap();
    place.create_dir_all("root/folder").unwrap();
    place.write("secret.jpg", b"secret").unwrap();
    place.write("root/a.jpg", b"picture").unwrap();
    let media = Media { root: Arc::new(place.open_dir("root").unwrap()) };
    (place, media)
}

fn code<T: std::fmt::Debug>(result: Result<T, MediaError>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn reads_what_is_inside() {
    let (_place, media) = place();
    for path in ["a.jpg", "./a.jpg", "folder/../a.jpg"] {
        assert_eq!(media.read(path).unwrap().bytes, b"picture", "{path}");
    }
    for path in ["b.jpg", "nowhere/b.jpg", "a.jpg/b.jpg", ""] {
        assert_eq!(code(media.read(path)), "picture_missing", "{path}");
    }
    assert_eq!(code(media.read("folder")), "bad_picture");
    assert_eq!(code(media.read("a\0b.jpg")), "bad_args");
}

#[test]
fn nothing_leads_out() {
    let (place, media) = place();
    place.symlink("../secret.jpg", "root/link.jpg").unwrap();
    place.symlink("..", "root/up").unwrap();
    place.symlink_contents("/", "root/slash").unwrap();
    let whole = std::env::temp_dir().join("secret.jpg");
    for path in [
        "../secret.jpg",
        "folder/../../secret.jpg",
        "/etc/hostname",
        whole.to_str().unwrap(),
        "link.jpg",
        "up/secret.jpg",
        "slash/etc/hostname",
    ] {
        assert_eq!(code(media.read(path)), "outside_root", "{path}");
    }
    for path in ["../new.jpg", "/tmp/new.jpg", "up/new.jpg", "folder/../../new.jpg", "up/deep/er/new.jpg"] {
        assert_eq!(code(media.save(path, b"x", None)), "outside_root", "{path}");
    }
    assert!(!place.exists("new.jpg") && !place.exists("deep"));
    assert_eq!(place.read("secret.jpg").unwrap(), b"secret");
}

#[test]
fn a_link_that_stays_inside_works() {
    let (place, media) = place();
    place.symlink("../a.jpg", "root/folder/link.jpg").unwrap();
    place.symlink("folder", "root/same").unwrap();
    assert_eq!(media.read("folder/link.jpg").unwrap().bytes, b"picture");
    assert_eq!(media.read("same/link.jpg").unwrap().bytes, b"picture");
    media.save("same/new.jpg", b"new", None).unwrap();
    assert_eq!(media.read("folder/new.jpg").unwrap().bytes, b"new");
}

#[test]
fn a_file_over_the_limit_is_refused() {
    let (place, media) = place();
    place.create("root/long.jpg").unwrap().set_len(SOURCE_MAX + 1).unwrap();
    assert_eq!(code(media.read("long.jpg")), "too_large");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let folder = std::env::temp_dir().join(format!("media-pipe-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.join("pipe.jpg")).status().unwrap();
    assert!(made.success());
    let result = code(Media::open(&folder).unwrap().read("pipe.jpg"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(result, "bad_picture");
}

#[test]
fn a_result_replaces_an_earlier_one_as_a_whole() {
    let (place, media) = place();
    media.save("made/for/it/t.jpg", b"a long first result", None).unwrap();
    media.save("made/for/it/t.jpg", b"second", None).unwrap();
    assert_eq!(place.read("root/made/for/it/t.jpg").unwrap(), b"second");
    assert_eq!(place.read_dir("root/made/for/it").unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_link_is_replaced_and_not_written_through() {
    let (place, media) = place();
    place.symlink("../secret.jpg", "root/t.jpg").unwrap();
    media.save("t.jpg", b"new", None).unwrap();
    assert_eq!(place.read("secret.jpg").unwrap(), b"secret");
    assert_eq!(media.read("t.jpg").unwrap().bytes, b"new");
}

#[test]
fn the_source_is_never_replaced() {
    let (place, media) = place();
    place.symlink(".", "root/same").unwrap();
    let source = media.read("a.jpg").unwrap();
    for path in ["a.jpg", "./a.jpg", "folder/../a.jpg", "same/a.jpg"] {
        assert_eq!(code(media.save(path, b"small", Some(&source))), "bad_args", "{path}");
    }
    assert_eq!(media.read("a.jpg").unwrap().bytes, b"picture");
}

#[test]
fn what_cannot_be_a_file_is_refused() {
    let (_place, media) = place();
    for path in ["", ".", "..", "folder", "folder/", "folder/..", "a.jpg/b.jpg", "x\0y.jpg"] {
        assert_eq!(code(media.save(path, b"x", None)), "bad_args", "{path:?}");
    }
    assert_eq!(code(media.save(&"n".repeat(300), b"x", None)), "bad_args");
}

#[test]
fn writers_of_one_name_leave_one_whole_result() {
    let (place, media) = place();
    std::thread::scope(|scope| {
        for byte in 0..8 {
            let media = media.clone();
            scope.spawn(move || media.save("t.jpg", &vec![byte; 100_000], None).unwrap());
        }
    });
    let bytes = place.read("root/t.jpg").unwrap();
    assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == bytes[0]));
}

#[test]
fn a_root_that_is_not_there_is_an_error() {
    assert!(Media::open("/nowhere/at/all").is_err());
}
