package config

import (
	"fmt"
	"reflect"
	"strconv"
	"time"

	"platter/internal/quantity"
)

// flags are those of the job's command line that the table gives a value.
func (in *job) flags() (list []string) {
	v := reflect.ValueOf(in).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("flag")
		if name == "" || v.Field(i).IsZero() {
			continue
		}
		for _, text := range flagValues(v.Field(i).Interface()) {
			list = append(list, "--"+name+"="+text)
		}
	}
	return list
}

func flagValues(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []string:
		return v
	case bool:
		return []string{strconv.FormatBool(v)}
	case *size:
		return []string{quantity.FormatSize(int64(*v))}
	case *span:
		return []string{quantity.FormatSpan(time.Duration(*v))}
	}
	panic(fmt.Sprintf("a flag of type %T", v))
}
