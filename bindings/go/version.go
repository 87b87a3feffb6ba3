package sft

// #include "bridge.h"
import "C"

import "fmt"

const (
	// HeaderVersion is the version of the library whose header the program was built with.
	HeaderVersion = C.SFT_VERSION
	// HeaderABIVersion is the number of the binary interface that the program was built for.
	HeaderABIVersion uint32 = C.SFT_ABI_VERSION
)

// Version is the version of the library that is running, such as "0.1.0".
func Version() string { return C.GoString(C.sft_version()) }

// ABIVersion is the number of the binary interface of the library that is running. Where it is not
// HeaderABIVersion, NewConfig fails.
func ABIVersion() uint32 { return uint32(C.sft_abi_version()) }

// BuildInfo says how the library was built, as a JSON object: "version", "abi_version", "arch", "os", "debug" and
// "devices", the kinds that this build can use. Later versions may add keys.
func BuildInfo() string { return C.GoString(C.sft_build_info()) }

// errABI is found out once, when the program starts.
var errABI = checkABI(ABIVersion(), Version())

func checkABI(running uint32, version string) error {
	if running == HeaderABIVersion {
		return nil
	}
	age, way := "a newer", "rebuild the program with its header and the binding that came with it"
	if running < HeaderABIVersion {
		age, way = "an older", fmt.Sprintf("install libsft %s or later", HeaderVersion)
	}
	return &Error{Status: ErrUnsupported, Message: fmt.Sprintf(
		"the program was built for libsft %s (ABI version %d) and runs with %s one, libsft %s (ABI version %d): %s",
		HeaderVersion, HeaderABIVersion, age, version, running, way)}
}
