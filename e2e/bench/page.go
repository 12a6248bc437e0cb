package bench

func page(r *Report) ([]byte, error) { return nil, nil }
