//! The pid file: written whole, removed only if it is still ours.

use std::path::{Path, PathBuf};

use super::StartError;

pub struct PidFile(PathBuf);

impl PidFile {
    pub fn write(path: PathBuf) -> Result<PidFile, StartError> {
        let temporary = path.with_extension("pid.new");
        std::fs::write(&temporary, format!("{}\n", std::process::id()))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|source| StartError::PidFile { path: path.clone(), source })?;
        Ok(PidFile(path))
    }

    pub fn remove(self) {
        let ours =
            |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if ours(&self.0)
            && let Err(error) = std::fs::remove_file(&self.0)
        {
            tracing::warn!("failed to remove the pid file {}: {error}", self.0.display());
        }
    }
}
