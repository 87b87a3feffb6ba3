/* A library of another binary interface, as far as the check looks. */
unsigned sft_abi_version(void) { return 77; }
const char *sft_version(void) { return "9.8.7"; }
