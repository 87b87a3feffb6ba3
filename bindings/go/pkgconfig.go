//go:build !sft_uninstalled

package sft

// An installed libsft is found by pkg-config. With the build tag sft_uninstalled nothing is looked for: header and
// library come from CGO_CFLAGS and CGO_LDFLAGS.

// #cgo pkg-config: sft
import "C"
