//! Folders that are still there after a power cut.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Makes a folder, and those above it, where they are missing. Each new one's entry in the folder above is on disk
/// when this returns: a file in it that was synced cannot be lost with its folder.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    fs::create_dir_all(folder)?;
    for new in missing {
        let above = new.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(above)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_with_those_above_it_and_may_be_there() {
        let top = std::env::temp_dir().join(format!("hopline-disk-{}", crate::job::JobId::new()));
        let deep = top.join("a/b");
        make_folder(&deep).unwrap();
        make_folder(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(top.join("file"), "").unwrap();
        make_folder(&top.join("file/c")).unwrap_err();
        fs::remove_dir_all(top).unwrap();
    }
}
