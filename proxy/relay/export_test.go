package relay

// Glance is for tests that wait for it.
const Glance = glance
