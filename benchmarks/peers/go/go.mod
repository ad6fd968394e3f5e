module peers

go 1.21

require github.com/distribution/reference v0.6.0
