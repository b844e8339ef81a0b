//! Stands where the program under test was installed, and never answers.

fn main() {
    loop {
        std::thread::park();
    }
}
