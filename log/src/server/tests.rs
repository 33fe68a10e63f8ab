//! Lives of logs, told by requests and answers.
