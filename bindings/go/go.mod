module github.com/libsft/libsft/bindings/go

go 1.19
