//! What holds for a row of the spool ([`crate::fuzzing`]).

use super::body::{Row, read_job};
use crate::{client::Submission, fuzzing::bounded, job::JobId};

const ID: [u8; 16] = [3; 16];

/// The body of a row, as the file has it.
pub(crate) fn spool(data: &[u8]) {
    match read_job(JobId::from_bytes(ID), &String::from_utf8_lossy(data), b"{}".to_vec()) {
        Ok(job) => {
            let again = spooled(&job);
            assert_eq!(format!("{again:?}"), format!("{job:?}"));
        }
        Err(error) => bounded(&error),
    }
}

/// A job as it comes out of the file.
pub(crate) fn spooled(job: &Submission) -> Submission {
    let row = Row::of(job);
    let args = job.envelope.args.to_vec();
    assert_eq!(row.size(), u64::try_from(row.body.len() + args.len()).expect("it is in memory"));
    read_job(row.id, &row.body, args).unwrap_or_else(|error| panic!("{error}: {}", row.body))
}
