//! The jobs that this process wrote something about a moment ago.

use std::collections::HashMap;

use crate::job::JobId;

/// Jobs that are remembered for certain; up to twice as many are.
const KEPT: usize = 50_000;

/// Jobs, each with the number of the last barrier that was asked for before it was touched.
///
/// Two generations: when the young one is full it becomes the old one, and what was old is forgotten.
#[derive(Debug, Default)]
pub(super) struct Touched {
    young: HashMap<JobId, u64>,
    old: HashMap<JobId, u64>,
}

impl Touched {
    pub(super) fn add(&mut self, id: JobId, asked: u64) {
        if self.young.len() >= KEPT {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, asked);
    }

    pub(super) fn of(&self, id: JobId) -> Option<u64> {
        self.young.get(&id).or_else(|| self.old.get(&id)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered() {
        let (mut touched, first, again) = (Touched::default(), JobId::new(), JobId::new());
        touched.add(first, 1);
        touched.add(again, 1);
        for _ in 0..KEPT {
            touched.add(JobId::new(), 2);
        }
        touched.add(again, 3);
        assert_eq!((touched.of(first), touched.of(again)), (Some(1), Some(3)));
        for _ in 0..KEPT {
            touched.add(JobId::new(), 4);
        }
        assert_eq!((touched.of(first), touched.of(again)), (None, Some(3)));
        assert!(touched.young.len() + touched.old.len() <= 2 * KEPT);
    }
}
