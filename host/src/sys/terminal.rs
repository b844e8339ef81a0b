//! The terminal that controls this process, if there is one: whether it is still there, and who tells of its end.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::unistd::{getppid, getsid};

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    was_there: bool,
    /// Who started this process: of the shell that tells of the end nothing may be left when its word is read.
    parent: i32,
}

impl Terminal {
    /// As it is now.
    pub fn now() -> Terminal {
        Terminal { was_there: is_there(), parent: getppid().as_raw() }
    }

    /// Whether it went away since.
    pub fn is_gone(&self) -> bool {
        self.was_there && !is_there()
    }

    /// Whether `sender` is who tells of a terminal's end: the shell that we were started from, or the session's leader. The
    /// kernel tells the leader alone, and those in the foreground once that has ended (tty_ioctl(4), setsid(2)).
    pub fn is_told_by(&self, sender: i32) -> bool {
        sender > 0 && (sender == self.parent || getsid(None).is_ok_and(|leader| leader.as_raw() == sender))
    }
}

/// A hangup takes the terminal from the whole session; then, as without any, this name leads nowhere (ENXIO, tty(4)).
fn is_there() -> bool {
    let flags = OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    File::options().read(true).custom_flags(flags.bits()).open("/dev/tty").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_gone_that_was_never_there() {
        assert!(!Terminal { was_there: false, parent: 7 }.is_gone());
        assert!(!Terminal::now().is_gone(), "whatever there is, it is there");
        assert_eq!(Terminal { was_there: true, parent: 7 }.is_gone(), !is_there());
    }

    #[test]
    fn a_shell_and_the_leader_of_the_session_tell() {
        let terminal = Terminal { was_there: true, parent: 7 };
        assert!(terminal.is_told_by(7));
        assert!(!terminal.is_told_by(8) && !terminal.is_told_by(0));
        let leader = getsid(None).unwrap().as_raw();
        assert_eq!(terminal.is_told_by(leader), leader > 0);
    }
}
