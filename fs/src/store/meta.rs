//! The `user.ks` extended attribute.
