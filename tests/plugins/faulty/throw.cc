// An exception that nobody in the plugin catches.

extern "C" void faulty_throw() { throw 1; }
